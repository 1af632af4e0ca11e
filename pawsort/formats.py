"""Which format some bytes are in: told by their first bytes, never by a file's name."""

from typing import Final

from pawsort.errors import PictureError

SUPPORTED: Final = ("jpeg", "png", "webp", "gif", "bmp", "tiff", "avif", "heic")

_SUPPORTED_MAGIC: Final = (
    *(b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a"),
    *(b"II*\x00", b"MM\x00*", b"BM", b"RIFF"),
)
_IMAGES_REFUSED: Final = (
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000 codestream"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"#?RGBE", "Radiance HDR"),
    (b"\x59\xa6\x6a\x95", "Sun raster"),
    (b"8BPS", "Photoshop"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"DDS ", "DirectDraw surface"),
    (b"gimp xcf", "GIMP"),
    (b"qoif", "QOI"),
    (b"farbfeld", "farbfeld"),
    (b"id=ImageMagick", "MIFF"),
    (b"FLIF", "FLIF"),
    (b"BPG\xfb", "BPG"),
    (b"AT&TFORM", "DjVu"),
    (b"\x00\x00\x01\x00", "Windows icon"),
    (b"\x00\x00\x02\x00", "Windows cursor"),
    (b"DanM", "Microsoft Paint (1987)"),
    (b"LinS", "Microsoft Paint (1987)"),
    (b"SIMPLE  =", "FITS"),
    (b"FUJIFILMCCD-RAW", "camera raw (Fujifilm)"),
    (b"IIRO", "camera raw (Olympus)"),
    (b"IIRS", "camera raw (Olympus)"),
    (b"MMOR", "camera raw (Olympus)"),
    (b"IIU\x00", "camera raw (Panasonic)"),
    (b"\x0a\x05\x01", "PCX"),
    (b"\x01\xda", "SGI"),
)
_AVIF_BRANDS: Final = frozenset({b"avif", b"avis"})
_HEIC_BRANDS: Final = frozenset({b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis"})
_HEIF_BRANDS: Final = frozenset({b"mif1", b"msf1", b"miaf"})
_PXM_KINDS: Final = b"1234567Ff"


def sniff(data: bytes) -> str:
    """Tell the format of a whole file's bytes.

    Returns one of SUPPORTED. Raises PictureError "empty", "unsupported_format" (an image of a known
    kind that is not read here) or "not_an_image".
    """
    if not data:
        raise PictureError("empty", "the file is empty (0 bytes)")
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if data.startswith((b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")):
        return _tiff_or_raw(data)
    if data[4:8] == b"ftyp" and len(data) >= 12:
        return _iso_media(data)
    if data.startswith(b"BM") and _looks_like_bmp(data):
        return "bmp"
    _refuse(data)
    if _is_a_beginning(data):
        raise PictureError("truncated", f"the file ends within its first mark, after {len(data)} bytes")
    raise PictureError("not_an_image", "the first bytes are not those of any picture format")


def _tiff_or_raw(data: bytes) -> str:
    if data[8:10] == b"CR":
        raise PictureError("unsupported_format", "camera raw (Canon CR2) is not read; export it as JPEG")
    return "tiff"


def _iso_media(data: bytes) -> str:
    """Read the brands of an ISO base media file (ISO/IEC 14496-12, 4.3): AVIF, HEIC, or something else."""
    length = int.from_bytes(data[:4], "big")
    if len(data) < min(length, 256):
        raise PictureError("truncated", "the file ends before it says what it is")
    listed = data[16 : min(length, 256)]
    major = data[8:12]
    brands = {major, *(listed[i : i + 4] for i in range(0, len(listed) - 3, 4))}
    if major in _AVIF_BRANDS:
        return "avif"
    if major in _HEIC_BRANDS:
        return "heic"
    if major in _HEIF_BRANDS:
        # The container's own brand leads: the coding stands among the compatible ones.
        return "avif" if brands & _AVIF_BRANDS else "heic"
    if major == b"crx ":
        raise PictureError("unsupported_format", "camera raw (Canon CR3) is not read; export it as JPEG")
    if brands & _AVIF_BRANDS:
        return "avif"
    if brands & _HEIC_BRANDS:
        return "heic"
    raise PictureError("not_an_image", "a video or another media file, not a picture")


def _is_a_beginning(data: bytes) -> bool:
    """Whether a few bytes may be the beginning of a supported picture that has not arrived yet."""
    if len(data) < 12 and (data[:4] == b"RIFF" or data[4:8] == b"ftyp"):
        return True
    may_be_iso_media = len(data) < 8 and not any(data[:3]) and b"ftyp".startswith(data[4:])
    return may_be_iso_media or any(magic.startswith(data) for magic in _SUPPORTED_MAGIC)


def _looks_like_bmp(data: bytes) -> bool:
    """Tell a bitmap from a text that begins with "BM": the size of the second header is one of a few.

    A file that ends before that size is taken for a bitmap that is not whole yet.
    """
    size = data[14:18]
    return len(size) < 4 or int.from_bytes(size, "little") in {12, 16, 40, 52, 56, 64, 108, 124}


def _refuse(data: bytes) -> None:
    """Raise for the picture formats that are known and not read, and for documents."""
    for magic, name in _IMAGES_REFUSED:
        if data.startswith(magic):
            raise PictureError(
                "unsupported_format", f"{name} pictures are not read; convert it to JPEG or PNG"
            )
    if data[:1] == b"P" and data[1:2] in {bytes((kind,)) for kind in _PXM_KINDS} and data[2:3].isspace():
        raise PictureError(
            "unsupported_format", "PBM/PGM/PPM/PAM/PFM pictures are not read; convert it to PNG"
        )
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<svg", b"<?xml")) and b"<svg" in data[:4096].lower():
        raise PictureError("unsupported_format", "SVG drawings are not read; convert it to PNG")
    if start.startswith(b"%pdf"):
        raise PictureError("not_an_image", "a PDF document, not a picture")
