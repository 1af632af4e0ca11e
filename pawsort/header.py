"""What a picture's header says, and whether its end is there: read before memory is spent on pixels.

A parser of our own and not Pillow's lazy `open`: the walk that finds the size is the walk that notices
a missing end, which Pillow's does not look for, and it is several times cheaper a photo.
Every parser reads the whole file's bytes and raises PictureError "truncated" when they stop before the
format says so, "corrupt" when they contradict the format.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from pawsort import exif, isobmff, tiff
from pawsort.errors import PictureError
from pawsort.formats import sniff

TRANSPOSING: Final = frozenset({5, 6, 7, 8})
"""The EXIF orientations that swap width and height."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """What is known about a picture without decoding it."""

    format: str  # one of formats.SUPPORTED
    width: int  # pixels, as shown: after the orientation was applied
    height: int
    frames: int  # pictures in the file; only the first is ever decoded
    orientation: int  # 1 to 8, as EXIF numbers them; what was stored, not what is left to do


def read_header(data: bytes) -> Header:
    """Read the header of a whole file's bytes, and check that the end of the file is there.

    Raises PictureError: "empty", "not_an_image", "unsupported_format", "truncated" or "corrupt".
    """
    kind = sniff(data)
    try:
        width, height, frames, orientation = _PARSERS[kind](data)
    except (struct.error, IndexError, OverflowError):
        # Every fixed-size field is read without asking whether it is there: a field that is not is a missing end.
        raise truncated(kind, len(data)) from None
    if width < 1 or height < 1:
        raise PictureError("corrupt", f"the {kind} header says {width} x {height} pixels")
    if orientation in TRANSPOSING:
        width, height = height, width
    return Header(format=kind, width=width, height=height, frames=frames, orientation=orientation)


def truncated(kind: str, size: int) -> PictureError:
    """Say that a file of `size` bytes stops before its format says so."""
    return PictureError("truncated", f"the {kind} file stops after {size} bytes, before its end")


# -- JPEG (ITU-T T.81, annex B) --------------------------------------------------------------------

_START_OF_SCAN: Final = 0xDA
_END_OF_IMAGE: Final = 0xD9
_APP1: Final = 0xE1
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_STANDALONE: Final = frozenset({0x00, 0x01, *range(0xD0, 0xD9)})
_LOSSLESS: Final = frozenset({0xC3, 0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF})  # lossless or hierarchical
_EXIF_MARK: Final = b"Exif\x00\x00"


def _jpeg(data: bytes) -> tuple[int, int, int, int]:
    width = height = 0
    orientation = 1
    for marker, start, end in _jpeg_segments(data):
        if marker in _FRAMES:
            precision, height, width = struct.unpack_from(">BHH", data, start)
            if precision != 8 or marker in _LOSSLESS:
                kind = "lossless or hierarchical" if marker in _LOSSLESS else f"{precision}-bit"
                raise PictureError("unsupported_format", f"a {kind} jpeg is not read")
        elif marker == _APP1 and orientation == 1 and data.startswith(_EXIF_MARK, start):
            orientation = exif.orientation(data[start + 6 : end])
    # Trailing bytes after the end mark are fine. A thumbnail's own end mark stands before the scan.
    if data.rfind(b"\xff\xd9", end) < 0:
        raise truncated("jpeg", len(data))
    return width, height, 1, orientation


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Walk the marker segments up to the header of the first scan: (marker, start and end of the contents)."""
    marker, position = 0, 2
    while marker != _START_OF_SCAN:
        # libjpeg skips stray bytes between segments too; any number of fill bytes may stand before a marker.
        position = data.find(b"\xff", position)
        if position < 0:
            raise truncated("jpeg", len(data))
        while data[position] == 0xFF:
            position += 1
        marker = data[position]
        position += 1
        if marker == _END_OF_IMAGE:
            raise PictureError("corrupt", "the jpeg file ends before its first scan")
        if marker in _STANDALONE:
            continue
        (length,) = struct.unpack_from(">H", data, position)
        if length < 2:  # it counts itself
            raise PictureError("corrupt", "a jpeg segment is shorter than its own length field")
        yield marker, position + 2, position + length
        position += length


# -- PNG (ISO/IEC 15948; APNG's acTL from the third edition) ----------------------------------------


def _png(data: bytes) -> tuple[int, int, int, int]:
    length, kind, width, height = struct.unpack_from(">I4sII", data, 8)
    if kind != b"IHDR" or length != 13:
        raise PictureError("corrupt", "the png file does not begin with its header")
    frames = orientation = 1
    position = 8
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, position)
        if length > 0x7FFFFFFF or not kind.isalpha():
            raise PictureError(
                "corrupt", f"the png file has no chunk where one should begin, at byte {position}"
            )
        if kind == b"acTL":
            (frames,) = struct.unpack_from(">I", data, position + 8)
        elif kind == b"eXIf" and length < len(data):
            orientation = exif.orientation(data[position + 8 : position + 8 + length])
        position += 12 + length
    if position > len(data):
        raise truncated("png", len(data))
    return width, height, max(frames, 1), orientation


# -- WebP (RFC 9649) ------------------------------------------------------------------------------

_VP8_START: Final = b"\x9d\x01\x2a"
_VP8L_START: Final = 0x2F


def _webp(data: bytes) -> tuple[int, int, int, int]:
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        raise truncated("webp", len(data))
    width = height = frames = 0
    orientation = 1
    position = 12
    while position + 8 <= end:
        kind, length = struct.unpack_from("<4sI", data, position)
        position += 8
        if kind == b"VP8X":
            width = int.from_bytes(data[position + 4 : position + 7], "little") + 1
            height = int.from_bytes(data[position + 7 : position + 10], "little") + 1
        elif kind == b"ANMF":
            frames += 1
        elif kind == b"EXIF":
            orientation = exif.orientation(data[position : position + length].removeprefix(_EXIF_MARK))
        elif kind in {b"VP8 ", b"VP8L"}:
            stored = _webp_picture(data[position : position + length], kind)
            width, height = (width, height) if width else stored
        elif not any(data[position - 8 : end]):
            raise truncated("webp", len(data))
        position += length + (length & 1)
    if not width:
        raise PictureError("corrupt", "the webp file holds no picture")
    return width, height, max(frames, 1), orientation


def _webp_picture(part: bytes, kind: bytes) -> tuple[int, int]:
    """Width and height of a still picture; its decoder takes zeros for data, so a tail of them is looked for here."""
    if len(part) > _TAIL and not any(part[-_TAIL:]):
        raise PictureError(
            "truncated", "the webp file ends in zeros, set aside for bytes that have not arrived"
        )
    if kind == b"VP8 ":
        start, width, height = struct.unpack_from("<3sHH", part, 3)
        good = start == _VP8_START
        width, height = width & 0x3FFF, height & 0x3FFF
    else:
        start, bits = struct.unpack_from("<BI", part)
        good = start == _VP8L_START
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if not good:
        raise PictureError("corrupt", "the webp file has no picture where one should begin")
    return width, height


_TAIL: Final = 256  # bytes; entropy-coded data never ends in so many zeros


# -- GIF (GIF89a specification) ---------------------------------------------------------------------


def _gif(data: bytes) -> tuple[int, int, int, int]:
    width, height, packed = struct.unpack_from("<HHB", data, 6)
    position = 13 + _colour_table(packed)
    frames = 0
    while True:
        mark = data[position]
        position += 1
        if mark == 0x3B:
            break
        if mark == 0x2C:
            position += 8
            position += 2 + _colour_table(data[position])
            frames += 1
        elif mark == 0x21:
            position += 1
        else:
            raise PictureError(
                "corrupt", f"the gif file has no block where one should begin, at byte {position - 1}"
            )
        size = data[position]
        while size:
            position += 1 + size
            size = data[position]
        position += 1
    if not frames:
        raise PictureError("corrupt", "the gif file holds no picture")
    return width, height, frames, 1


def _colour_table(packed: int) -> int:
    """Bytes of the colour table that a GIF's packed field announces."""
    return 3 << (packed & 7) + 1 if packed & 0x80 else 0


# -- BMP (Windows bitmap, OS/2 bitmap) --------------------------------------------------------------

_OS2_HEADER: Final = 12
_UNCOMPRESSED: Final = frozenset({0, 3, 6})


def _bmp(data: bytes) -> tuple[int, int, int, int]:
    offset, header = struct.unpack_from("<II", data, 10)
    compression = stored = 0
    if header == _OS2_HEADER:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
    else:
        width, height, _, bits, compression, stored = struct.unpack_from("<iiHHII", data, 18)
    height = abs(height)  # a negative one says that the first row is the top one
    if compression in _UNCOMPRESSED and width > 0:
        stored = (width * bits + 31) // 32 * 4 * height
    if offset + stored > len(data):
        raise truncated("bmp", len(data))
    return width, height, 1, 1


# -- AVIF and HEIC, TIFF: in modules of their own ---------------------------------------------------


def _heif(data: bytes) -> tuple[int, int, int, int]:
    picture = isobmff.read_primary(data)
    return picture.width, picture.height, 1, picture.orientation


def _tiff(data: bytes) -> tuple[int, int, int, int]:
    pages = tiff.read_pages(data)
    return pages.width, pages.height, pages.count, pages.orientation


_PARSERS: Final = {
    "jpeg": _jpeg,
    "png": _png,
    "webp": _webp,
    "gif": _gif,
    "bmp": _bmp,
    "tiff": _tiff,
    "avif": _heif,
    "heic": _heif,
}
