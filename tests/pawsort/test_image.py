import collections
import io
import pickle
import struct
import sys
import time
import zlib

import cv2
import numpy as np
import pytest

import drawn
from pawsort import errors, image
from pawsort.header import Header

LIMITS = image.Limits()
SUFFIXES = (".jpg", ".png", ".webp", ".gif", ".bmp", ".tiff", ".avif")
FORMATS = dict(zip(SUFFIXES, ("jpeg", "png", "webp", "gif", "bmp", "tiff", "avif"), strict=True))
ALIKE = 30  # grey levels, root mean square: room for a codec's losses and GIF's few colours; a wrong turn makes 100
UPRIGHT = {
    # How the picture as shown is stored, for each EXIF orientation.
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: p.transpose(1, 0, 2)[::-1],
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: p.transpose(1, 0, 2)[:, ::-1],
}


def quarters(width=120, height=80):
    """A picture whose four quarters differ: it looks different under every turn and mirror."""
    picture = np.empty((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2] = (230, 20, 20)
    picture[: height // 2, width // 2 :] = (20, 200, 20)
    picture[height // 2 :, : width // 2] = (20, 20, 220)
    picture[height // 2 :, width // 2 :] = (220, 220, 40)
    return picture


def distance(one, other):
    """Root mean square difference in grey levels."""
    assert one.shape == other.shape
    return float(np.sqrt(np.mean((one.astype(float) - other.astype(float)) ** 2)))


def exif(orientation, order="<"):
    mark = b"II" if order == "<" else b"MM"
    entry = struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0)
    return mark + struct.pack(order + "HIH", 42, 8, 1) + entry + bytes(4)


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def jpeg_with_exif(data, block):
    body = b"Exif\0\0" + block
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:]


def png_with(data, *chunks):
    """A PNG with more chunks behind its header."""
    return data[:33] + b"".join(chunks) + data[33:]


def tiff_with(data, tag, value):
    """A little-endian TIFF of cv2's, its directory written anew at the end with one more SHORT field."""
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    entries = [data[at + 2 + 12 * i : at + 14 + 12 * i] for i in range(count)]
    entries = [entry for entry in entries if struct.unpack_from("<H", entry)[0] != tag]
    entries = sorted(
        [*entries, struct.pack("<HHIHH", tag, 3, 1, value, 0)], key=lambda e: struct.unpack_from("<H", e)
    )
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return data[:4] + struct.pack("<I", len(data)) + data[8:] + directory


def pillow(picture, kind, **options):
    module = pytest.importorskip("PIL.Image", reason="Pillow writes this test's picture")
    buffer = io.BytesIO()
    module.fromarray(np.ascontiguousarray(picture)).save(buffer, kind, **options)
    return buffer.getvalue()


def heic(picture, **options):
    pytest.importorskip("pillow_heif", reason="needs the extra [heic]").register_heif_opener()
    return pillow(picture, "HEIF", quality=90, **options)


def refused(data, reason, limits=LIMITS):
    with pytest.raises(errors.PictureError) as caught:
        image.decode(data, limits, 64)
    assert caught.value.reason == reason, str(caught.value)
    return str(caught.value)


# -- What comes out ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_each_format_is_known_by_its_bytes_and_decoded(suffix):
    picture = quarters()
    photo = image.decode(drawn.encode(picture, suffix), LIMITS, 64)
    assert photo.header == Header(format=FORMATS[suffix], width=120, height=80, frames=1, orientation=1)
    assert photo.pixels.dtype == np.uint8
    assert photo.pixels.flags.c_contiguous
    assert distance(photo.pixels, picture) < ALIKE


def test_heic_is_decoded_with_the_extra():
    photo = image.decode(heic(quarters()), LIMITS, 64)
    assert photo.header == Header(format="heic", width=120, height=80, frames=1, orientation=1)
    assert distance(photo.pixels, quarters()) < ALIKE


def test_heic_without_the_extra_names_the_remedy(monkeypatch):
    data = heic(quarters())
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert "pip install 'pawsort[heic]'" in refused(data, "unsupported_format")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    "kind", ["jpeg", "jpeg big-endian", "large jpeg", "png", "tiff", "webp", "avif", "heic"]
)
def test_the_picture_comes_upright_for_every_orientation_and_format(kind, orientation):
    upright = quarters(1200, 800) if kind == "large jpeg" else quarters()
    stored = np.ascontiguousarray(UPRIGHT[orientation](upright))
    if kind.endswith(("jpeg", "big-endian")):
        order = ">" if kind.endswith("big-endian") else "<"
        data = jpeg_with_exif(drawn.encode(stored), exif(orientation, order))
    elif kind == "png":
        data = png_with(drawn.encode(stored, ".png"), chunk(b"eXIf", exif(orientation)))
    elif kind == "tiff":
        data = tiff_with(drawn.encode(stored, ".tiff"), 274, orientation)
    elif kind == "heic":
        data = heic(stored, exif=b"Exif\0\0" + exif(orientation))
    else:
        data = pillow(stored, kind.upper(), exif=b"Exif\0\0" + exif(orientation))
    photo = image.decode(data, LIMITS, 64)
    height, width = upright.shape[:2]
    assert (photo.header.width, photo.header.height) == (width, height)
    if kind == "large jpeg":
        assert photo.pixels.shape == (100, 150, 3)
        upright = cv2.resize(upright, (150, 100), interpolation=cv2.INTER_AREA)
    assert distance(photo.pixels, upright) < ALIKE


@pytest.mark.parametrize(
    "block", [b"", b"II", b"XX*\0", exif(9), exif(0), exif(6)[:-10], b"II*\0\xff\xff\xff\x7f"]
)
def test_damaged_metadata_costs_no_photo_its_picture(block):
    photo = image.decode(jpeg_with_exif(drawn.encode(quarters()), block), LIMITS, 64)
    assert photo.header.orientation == 1
    assert distance(photo.pixels, quarters()) < ALIKE


def see_through():
    """RGBA: left half opaque red, right half a green that three quarters of the background shine through."""
    picture = np.zeros((40, 60, 4), np.uint8)
    picture[:, :30] = (200, 30, 30, 255)
    picture[:, 30:] = (40, 160, 0, 64)
    return picture


@pytest.mark.parametrize(
    "kind",
    [
        *("png", "webp", "avif", "tiff", "tiff unassociated", "tiff associated"),
        *("png 16 bits", "tiff 16 bits", "tiff unassociated 16 bits", "tiff associated 16 bits"),
    ],
)
def test_transparency_is_laid_on_white(kind):
    bgra = cv2.cvtColor(see_through(), cv2.COLOR_RGBA2BGRA)
    if " associated" in kind:
        bgra[:, :, :3] = np.round(bgra[:, :, :3] * (bgra[:, :, 3:] / 255))
    source = bgra.astype(np.uint16) * 257 if kind.endswith("16 bits") else bgra
    data = cv2.imencode("." + kind.split()[0], source)[1].tobytes()
    if "associated" in kind:
        data = tiff_with(data, 338, 2 if "unassociated" in kind else 1)
    pixels = image.decode(data, LIMITS, 64).pixels
    assert np.abs(pixels[5, 5].astype(int) - (200, 30, 30)).max() < 12
    assert np.abs(pixels[5, 50].astype(int) - (201, 231, 191)).max() < 6


def test_what_is_fully_transparent_is_white_whatever_colour_hides_there():
    picture = see_through()
    picture[:, 30:] = (10, 240, 10, 0)
    data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGBA2BGRA))[1].tobytes()
    assert (image.decode(data, LIMITS, 64).pixels[:, 30:] == 255).all()


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_colour_of_a_palette_is_white(kind):
    module = pytest.importorskip("PIL.Image", reason="Pillow writes this test's picture")
    palette = module.new("P", (40, 20), 1)
    palette.putpalette([0, 200, 0, 200, 0, 0])
    palette.paste(0, (0, 0, 20, 20))
    buffer = io.BytesIO()
    palette.save(buffer, kind, transparency=0)
    pixels = image.decode(buffer.getvalue(), LIMITS, 64).pixels
    assert pixels[5, 5].tolist() == [255, 255, 255]
    assert pixels[5, 30].tolist() == [200, 0, 0]


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_sixteen_bits_become_eight_by_rounding(suffix):
    deep = np.array([[0, 128, 129, 257 * 7, 65535 - 128, 65535]], np.uint16).repeat(4, axis=0)
    pixels = image.decode(cv2.imencode(suffix, deep)[1].tobytes(), LIMITS, 64).pixels
    assert pixels[0, :, 0].tolist() == [0, 0, 1, 7, 255, 255]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tiff", ".avif"])
def test_greyscale_becomes_three_equal_channels(suffix):
    grey = cv2.cvtColor(quarters(), cv2.COLOR_RGB2GRAY)
    # OpenCV 4.12 cannot write a grey AVIF.
    data = pillow(grey, "AVIF") if suffix == ".avif" else cv2.imencode(suffix, grey)[1].tobytes()
    pixels = image.decode(data, LIMITS, 64).pixels
    assert pixels.shape == (80, 120, 3)
    assert np.ptp(pixels.astype(int), axis=2).max() <= 3
    assert distance(pixels[:, :, 0], grey) < ALIKE


@pytest.mark.parametrize("factor", [1, 4])
def test_a_cmyk_jpeg_comes_in_its_colours(factor):
    module = pytest.importorskip("PIL.Image", reason="Pillow writes this test's picture")
    buffer = io.BytesIO()
    module.fromarray(quarters(480, 320)).convert("CMYK").save(buffer, "JPEG", quality=95)
    pixels = image.decode(buffer.getvalue(), LIMITS, 320 // factor).pixels
    assert distance(pixels, quarters(480 // factor, 320 // factor)) < ALIKE


def test_floating_point_samples_are_refused_by_name():
    samples = np.random.default_rng(0).random((20, 30), np.float32)
    assert "float32" in refused(cv2.imencode(".tiff", samples)[1].tobytes(), "unsupported_format")


@pytest.mark.parametrize(
    ("kind", "options"), [("GIF", {}), ("WEBP", {}), ("PNG", {}), ("TIFF", {}), ("AVIF", {})]
)
def test_the_first_of_several_frames_is_decoded(kind, options):
    module = pytest.importorskip("PIL.Image", reason="Pillow writes this test's picture")
    others = [module.fromarray(drawn.draw("squares", seed, (120, 80))) for seed in range(3)]
    data = pillow(quarters(), kind, save_all=True, append_images=others, **options)
    photo = image.decode(data, LIMITS, 64)
    assert distance(photo.pixels, quarters()) < ALIKE
    if kind != "AVIF":
        assert photo.header.frames == 4


@pytest.mark.parametrize(
    "size", [(4000, 3000), (3000, 4000), (1023, 767), (512, 512), (511, 900), (2047, 300)]
)
def test_a_large_jpeg_is_reduced_while_decoding_but_never_below_what_is_needed(size):
    pixels = image.decode(drawn.encode(drawn.draw("circles", 1, size)), LIMITS, 256).pixels
    short = min(pixels.shape[:2])
    assert 256 <= short < 512
    assert max(pixels.shape[:2]) / short == pytest.approx(max(size) / min(size), rel=0.02)


def test_a_reduced_picture_looks_like_the_whole_one_made_smaller():
    picture = drawn.draw("triangles", 3, (1600, 1200))
    pixels = image.decode(drawn.encode(picture), LIMITS, 300).pixels
    assert pixels.shape == (300, 400, 3)
    assert distance(pixels, cv2.resize(picture, (400, 300), interpolation=cv2.INTER_AREA)) < 6


# -- What is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (image.Limits(bytes=100), "bytes, over the limit of 100"),
        (image.Limits(pixels=9_599), "9,600 pixels, over the limit of 9,599"),
        (image.Limits(side=119), "120 pixels a side, over the limit of 119"),
    ],
)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_limits_are_held_and_named(suffix, limits, words):
    data = drawn.encode(drawn.draw("circles", 0, (120, 80)), suffix)
    image.decode(data, image.Limits(pixels=9_600, side=120), 64)
    assert words in refused(data, "too_large", limits)


def test_too_many_frames_are_refused():
    module = pytest.importorskip("PIL.Image", reason="Pillow writes this test's picture")
    others = [module.fromarray(drawn.draw("squares", seed)) for seed in range(3)]
    data = pillow(drawn.draw("circles", 0), "GIF", save_all=True, append_images=others)
    image.decode(data, image.Limits(frames=4), 64)
    assert "4 frames" in refused(data, "too_large", image.Limits(frames=3))


def test_a_bomb_is_refused_by_its_header_alone():
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 16, 6, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    refused(bomb, "too_large")


def test_no_bytes_are_empty():
    refused(b"", "empty")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_cut_anywhere_is_truncated_and_never_a_picture(suffix):
    data = drawn.encode(drawn.draw("circles", 5, (160, 120)), suffix)
    cuts = {*range(1, 64), *np.linspace(64, len(data) - 1, 60, dtype=int), *range(len(data) - 20, len(data))}
    for cut in sorted(cuts):
        refused(data[:cut], "truncated")


def test_a_tiff_whose_pixels_come_last_is_truncated_when_cut_anywhere():
    data = pillow(drawn.draw("circles", 5, (160, 120)), "TIFF")
    for cut in np.linspace(10, len(data) - 1, 60, dtype=int):
        refused(data[:cut], "truncated")


def test_a_heic_file_cut_anywhere_is_truncated_and_never_a_picture():
    data = heic(drawn.draw("circles", 5, (160, 120)))
    for cut in sorted({*range(12, 64), *np.linspace(64, len(data) - 1, 40, dtype=int)}):
        refused(data[:cut], "truncated")


def test_a_progressive_jpeg_cut_anywhere_is_truncated():
    data = drawn.encode(drawn.draw("circles", 5, (160, 120)), ".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    for cut in np.linspace(20, len(data) - 1, 60, dtype=int):
        refused(data[:cut], "truncated")


def test_a_thumbnail_inside_does_not_pass_for_the_end_of_the_photo():
    thumbnail = drawn.encode(drawn.draw("circles", 5, (32, 24)))
    data = jpeg_with_exif(drawn.encode(drawn.draw("circles", 5, (160, 120))), exif(1) + thumbnail)
    image.decode(data, LIMITS, 64)
    for cut in np.linspace(len(thumbnail) + 60, len(data) - 1, 40, dtype=int):
        refused(data[:cut], "truncated")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".gif", ".avif"])
def test_space_set_aside_for_bytes_that_have_not_arrived_is_truncated(suffix):
    data = drawn.encode(drawn.photo(1, 320, 240), suffix)
    for share in (0.3, 0.6, 0.9):
        arrived = int(len(data) * share)
        refused(data[:arrived] + bytes(len(data) - arrived), "truncated")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_bytes_behind_a_whole_picture_do_no_harm(suffix):
    data = drawn.encode(quarters(), suffix)
    for trailing in (b"\0" * 3000, b"\xff\xd8\xff trailing", b"not part of it"):
        assert distance(image.decode(data + trailing, LIMITS, 64).pixels, quarters()) < ALIKE


@pytest.mark.parametrize(
    "data",
    [
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 9, 8, 2, 0, 0, 0))
        + chunk(b"IEND", b""),
        b"\x89PNG\r\n\x1a\n" + chunk(b"IDAT", b"x" * 40) + chunk(b"IEND", b""),
        drawn.encode(quarters(), ".png").replace(b"IDAT", b"IDAU"),
        drawn.encode(quarters(), ".png")[:33] + b"\xff\xff\xff\xff....  and more" + b"x" * 100,
        b"\xff\xd8\xff\xd9" + bytes(20),
        b"\xff\xd8\xff\xe0\0\0" + bytes(20) + b"\xff\xd9",
        b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8 " + struct.pack("<I", 18) + b"x" * 18,
        b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0, 0, 0) + b";",
        b"II*\0" + bytes(40),
    ],
)
def test_bytes_that_contradict_their_format_are_corrupt(data):
    refused(data, "corrupt")


def test_a_flipped_bit_in_a_png_is_corrupt():
    data = bytearray(drawn.encode(drawn.photo(1, 160, 120), ".png"))
    data[len(data) // 2] ^= 4
    refused(bytes(data), "corrupt")


def test_no_damage_makes_the_header_fail_otherwise_than_with_a_reason_and_soon():
    random = np.random.default_rng(7)
    wholes = [drawn.encode(quarters(), suffix) for suffix in SUFFIXES]
    wholes += [
        pillow(quarters(), "TIFF", big_tiff=True),
        pillow(quarters(), "WEBP", exif=b"Exif\0\0" + exif(6)),
    ]
    reasons = collections.Counter()
    slowest = 0.0
    for _ in range(20_000):
        data = bytearray(wholes[random.integers(len(wholes))])
        for _ in range(random.integers(1, 6)):
            at = random.integers(min(len(data), random.choice([32, 300, len(data)])))
            data[at : at + 4] = random.choice(
                [0, 1, 0x7FFFFFFF, 0xFFFFFFFF, random.integers(2**32)]
            ).tobytes()[:4]
        began = time.process_time()
        try:
            image.read_header(bytes(data))
        except errors.PictureError as error:
            reasons[error.reason] += 1
        slowest = max(slowest, time.process_time() - began)
    assert reasons["truncated"] > 100
    assert reasons["corrupt"] > 100
    assert slowest < 0.5, "a few bytes must not cost the header's reader seconds"


def test_a_description_of_nothing_a_billion_times_is_read_at_once():
    data = bytearray(drawn.encode(quarters(), ".avif"))
    at = data.index(b"iloc") + 4
    data[at : at + 6] = b"\2\0\0\0\0\0"  # version 2, and no bytes for any offset or length
    data[at + 6 : at + 10] = b"\xff\xff\xff\xff"
    began = time.process_time()
    with pytest.raises(errors.PictureError):
        image.read_header(bytes(data))
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize(
    "start",
    [
        b"\x00\x00\x00\x0cjP  \r\n\x87\n",
        b"\xff\x4f\xff\x51",
        b"#?RADIANCE\n",
        b"P6\n2 2\n255\n",
        b"Pf\n2 2\n",
        b"\x59\xa6\x6a\x95",
        b"8BPS",
        b"\x76\x2f\x31\x01",
        b"\x00\x00\x00\x0cJXL \r\n\x87\n",
        b"\xff\x0a",
        b"\x00\x00\x01\x00\x01\x00",
        b"qoif",
        b"DDS ",
        b"id=ImageMagick",
        b"<svg xmlns='http://www.w3.org/2000/svg'>",
        b"<?xml version='1.0'?>\n<svg>",
        b"II*\0\x10\0\0\0CR\x02\0",
        b"FUJIFILMCCD-RAW ",
        b"\0\0\0\x18ftypcrx \0\0\0\x01crx isom",
    ],
)
def test_known_pictures_that_are_not_read_are_unsupported_and_say_what_to_do(start):
    message = refused(start + bytes(64), "unsupported_format")
    assert "convert it to" in message or "export it as" in message


def test_camera_raw_inside_tiff_is_unsupported():
    dng = tiff_with(drawn.encode(quarters(), ".tiff"), 50706, 1)
    assert "camera raw" in refused(dng, "unsupported_format")


@pytest.mark.parametrize(
    "data",
    [
        b"hello, world\n" * 10,
        b"BMW is no bitmap, it is a car\n" * 10,
        b"%PDF-1.7\n" + bytes(100),
        b"PK\x03\x04" + bytes(100),
        b"\0\0\0\x18ftypisom\0\0\2\0isomiso2" + bytes(100),
        b"\x7fELF" + bytes(100),
        bytes(1000),
    ],
)
def test_what_is_no_picture_is_said_to_be_none(data):
    refused(data, "not_an_image")


# -- Sizes and views --------------------------------------------------------------------------------


def test_centre_keeps_the_middle_seven_eighths_of_the_short_side():
    ramp = np.zeros((256, 512, 3), np.uint8)
    ramp[:, :, 0] = np.arange(512) // 2
    ramp[:, :, 1] = np.arange(256)[:, None]
    centre = image.view(ramp, "centre", 224)
    assert centre.shape == (224, 224, 3)
    assert centre[0, :, 1].max() == centre[0, :, 1].min() == 16
    assert centre[-1, 0, 1] == 239
    assert (int(centre[0, 0, 0]), int(centre[0, -1, 0])) == ((512 - 224) // 2 // 2, (512 + 224) // 2 // 2 - 1)


def test_whole_shows_everything_squeezed():
    whole = image.view(quarters(600, 200), "whole", 100)
    assert whole.shape == (100, 100, 3)
    assert distance(whole, quarters(100, 100)) < 12


@pytest.mark.parametrize("base", ["centre", "whole"])
@pytest.mark.parametrize("size", [(500, 374), (100, 900), (224, 224), (60, 40), (1, 1), (2000, 3)])
def test_a_flipped_view_mirrors_its_base_for_pictures_of_any_shape(base, size):
    picture = drawn.draw("squares", 2, size)
    one, other = (image.view(picture, name, 224) for name in (base, base + "-flipped"))
    assert one.shape == other.shape == (224, 224, 3)
    assert one.flags.c_contiguous
    assert other.flags.c_contiguous
    assert np.array_equal(one[:, ::-1], other)


def test_views_made_together_are_those_made_one_by_one():
    picture = drawn.photo(4, 500, 374)
    together = image.views(picture, image.VIEWS, 224)
    assert together.shape == (4, 224, 224, 3)
    for made, name in zip(together, image.VIEWS, strict=True):
        assert np.array_equal(made, image.view(picture, name, 224))


@pytest.mark.parametrize("size", [(500, 374), (450, 300), (900, 700), (260, 257)])
def test_shrinking_does_not_alias(size):
    module = pytest.importorskip("PIL.Image", reason="compares with Pillow's filter")
    picture = drawn.photo(7, *size)
    smooth = module.fromarray(picture).resize((224, 224), module.Resampling.BILINEAR)
    coarse = cv2.resize(picture, (224, 224), interpolation=cv2.INTER_NEAREST)
    ours = distance(image.view(picture, "whole", 224), np.asarray(smooth))
    assert ours < 3
    assert ours < distance(coarse, np.asarray(smooth)) / 3


def test_an_unknown_view_is_an_error_that_names_the_known_ones():
    for call in (
        lambda: image.view(quarters(), "left", 224),
        lambda: image.Render(size=224, views=("left",)),
    ):
        with pytest.raises(ValueError, match=r"left.*centre, centre-flipped, whole"):
            call()


@pytest.mark.parametrize("size", [(500, 374), (374, 500), (90, 60), (4000, 100), (8000, 300), (3, 1000)])
def test_the_kept_picture_has_its_shape_within_its_room(size):
    kept = image.whole(drawn.draw("circles", 1, size), 160)
    render = image.Render(size=224, views=(), keep_short_side=160)
    assert kept.nbytes <= render.whole_bytes
    assert min(kept.shape[:2]) <= 160
    assert kept.shape[0] <= size[1]
    assert kept.shape[1] <= size[0]
    if max(size) / min(size) < 4:
        assert min(kept.shape[:2]) == min(160, *size)


@pytest.mark.parametrize(
    ("render", "short_side"),
    [
        (image.Render(size=224), 256),
        (image.Render(size=224, views=("whole",)), 224),
        (image.Render(size=224, views=("whole", "centre-flipped")), 256),
        (image.Render(size=224, views=("centre",), keep_short_side=300), 300),
        (image.Render(size=300, views=(), keep_short_side=180), 180),
    ],
)
def test_decoding_goes_no_finer_than_a_render_needs(render, short_side):
    assert render.short_side == short_side


# -- The errors themselves --------------------------------------------------------------------------


def test_a_picture_error_carries_one_of_the_known_reasons():
    with pytest.raises(ValueError, match="unknown reason"):
        errors.PictureError("ugly", "it is")
    again = pickle.loads(pickle.dumps(errors.PictureError("empty", "nothing there")))
    assert (again.reason, str(again)) == ("empty", "nothing there")


def test_a_config_error_keeps_each_problem():
    assert errors.ConfigError(["a: is missing", "b: is no number"]).problems == (
        "a: is missing",
        "b: is no number",
    )
    assert str(errors.ConfigError("a: is missing")) == "a: is missing"


# -- Real photos ------------------------------------------------------------------------------------


@pytest.mark.real
def test_headers_agree_with_pillow_on_real_photos(shared):
    module = pytest.importorskip("PIL.Image", reason="compares with Pillow")
    photos = sorted((shared / "data" / "animals").glob("*/*"))[::12] + sorted(
        (shared / "data" / "other").iterdir()
    )
    assert len(photos) > 200
    for path in photos:
        data = path.read_bytes()
        header = image.read_header(data)
        with module.open(io.BytesIO(data)) as opened:
            stored = opened.size
            assert header.orientation == opened.getexif().get(274, 1), path
            assert header.format == opened.format.lower(), path
        expected = stored[::-1] if header.orientation >= 5 else stored
        assert (header.width, header.height) == expected, path
