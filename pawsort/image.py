"""The preprocessing: a file's bytes -> pixels -> the views a model sees. Daemon and trainer share it.

The header is read and held against the limits first (header.py), then one call of OpenCV decodes. What
comes out is the same for the same bytes, wherever it runs:

- orientation: EXIF's (and AVIF's and HEIC's own turn) is applied, whatever the format;
- transparency is laid on white, the page that cut-outs are made for;
- 16 bits become 8 by rounding, greyscale becomes three equal channels, CMYK becomes RGB;
- large pictures are reduced by a whole factor on the way, inside the JPEG decoder where it can.

Import this module after OPENCV_IO_MAX_IMAGE_PIXELS is set, if it is to count: OpenCV reads it once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from pawsort import tiff
from pawsort.errors import PictureError
from pawsort.header import Header, read_header
from pawsort.render import CENTRE_SHARE, MOST_STRETCH, VIEWS, Limits, Render, check

__all__ = ["Header", "Limits", "Photo", "Render", "check", "decode", "read_header", "view", "views", "whole"]

Pixels = npt.NDArray[np.uint8]
Stored = npt.NDArray[np.integer[Any] | np.floating[Any]]

WHITE: Final = 255
"""The background that transparent pictures are laid on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Photo:
    """A decoded picture."""

    pixels: Pixels  # (H, W, 3) RGB, as shown, contiguous
    header: Header


def decode(data: bytes, limits: Limits, short_side: int) -> Photo:
    """Decode the first picture of a whole file's bytes.

    A picture at least twice as large as needed is reduced by a whole factor, so that its short side
    stays at or above `short_side` (pixels); a smaller one comes as it is.

    Raises PictureError with any reason but the pool's own ("changed", "decoder_died",
    "decoder_timed_out"); MemoryError when the machine or the worker's limit has no room.
    """
    if len(data) > limits.bytes:
        raise PictureError("too_large", f"{len(data):,} bytes, over the limit of {limits.bytes:,}")
    try:
        header = read_header(data)
        check(header, limits)
        pixels = _decoded(data, header, short_side)
    except PictureError as error:
        if error.reason == "corrupt" and len(data) > _TAIL and not any(data[-_TAIL:]):
            # Some writers set the space aside first: what has not arrived yet reads as zeros.
            raise PictureError(
                "truncated", f"the file ends in zeros, as if not all of it were there: {error}"
            ) from error
        raise
    return Photo(pixels=np.ascontiguousarray(pixels), header=header)


# -- Decoding ---------------------------------------------------------------------------------------

_TAIL: Final = 64  # bytes of zeros at the end of a broken file that say that the rest is missing
_ORIENTED_BY_DECODER: Final = frozenset({"tiff", "heic"})
_REDUCED_JPEG: Final = (
    (8, cv2.IMREAD_REDUCED_COLOR_8),
    (4, cv2.IMREAD_REDUCED_COLOR_4),
    (2, cv2.IMREAD_REDUCED_COLOR_2),
)


def _imdecode(data: bytes, flags: int, kind: str) -> Stored:
    """One call of OpenCV; its two ways of failing become PictureError "corrupt", no memory MemoryError."""
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError(str(error)) from error
        raise PictureError("corrupt", f"the {kind} decoder refuses it: {error.err or error}") from error
    if pixels is None:
        raise PictureError("corrupt", f"the {kind} decoder cannot make a picture of it")
    return pixels


def _decoded(data: bytes, header: Header, short_side: int) -> Pixels:
    """Pixels (H, W, 3) RGB as shown, reduced by a whole factor."""
    if header.format == "jpeg":
        pixels = _jpeg(data, min(header.width, header.height) // short_side)
    elif header.format == "heic":
        pixels = _heic(data)
    else:
        pixels = _other(data, header)
    if header.format not in _ORIENTED_BY_DECODER:
        pixels = _oriented(pixels, header.orientation)
    factor = min(pixels.shape[:2]) // short_side
    return _reduced(pixels, factor) if factor > 1 else pixels


def _jpeg(data: bytes, factor: int) -> Pixels:
    for scale, flag in _REDUCED_JPEG:
        if scale <= factor:
            pixels = _imdecode(data, flag | cv2.IMREAD_IGNORE_ORIENTATION, "jpeg")
            return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), np.uint8)
    return np.asarray(_imdecode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION, "jpeg"), np.uint8)


def _other(data: bytes, header: Header) -> Pixels:
    """Decode with transparency and depth as stored, then make RGB of it."""
    stored = _imdecode(data, cv2.IMREAD_UNCHANGED, header.format)
    deep = stored.dtype != np.uint8
    if stored.dtype == np.uint16:
        stored = cv2.convertScaleAbs(stored, alpha=1 / 257)  # 65535 becomes 255
    if stored.dtype != np.uint8:
        raise PictureError(
            "unsupported_format", f"{header.format} pictures of {stored.dtype} samples are not read"
        )
    if stored.ndim == 2 or stored.shape[2] == 1:
        return np.asarray(cv2.cvtColor(stored, cv2.COLOR_GRAY2RGB), np.uint8)
    if stored.shape[2] == 3:
        return np.asarray(cv2.cvtColor(stored, cv2.COLOR_BGR2RGB), np.uint8)
    rgba = np.asarray(cv2.cvtColor(stored, cv2.COLOR_BGRA2RGBA), np.uint8)
    return _on_white(rgba, premultiplied=header.format == "tiff" and _is_premultiplied(data, deep=deep))


def _is_premultiplied(data: bytes, *, deep: bool) -> bool:
    """Whether OpenCV gives the colours of a TIFF multiplied with their alpha.

    They come as stored, but for 8-bit ones that the file says are not multiplied: libtiff multiplies
    those. Where the file says nothing they are taken for not multiplied, as OpenCV writes them.
    """
    extra_sample = tiff.read_pages(data).extra_sample
    return extra_sample == tiff.ASSOCIATED or (extra_sample == tiff.UNASSOCIATED and not deep)


def _on_white(rgba: Pixels, *, premultiplied: bool) -> Pixels:
    """Lay transparent pixels (H, W, 4) on white, row by row so that little memory is needed."""
    alpha = rgba[:, :, 3]
    rgb = np.ascontiguousarray(rgba[:, :, :3])
    if int(alpha.min()) == WHITE:
        return rgb
    for row, row_alpha in zip(rgb, alpha, strict=True):
        share = row_alpha[:, None].astype(np.uint16)
        # A premultiplied colour above its alpha is an error of the file's; cut off, it cannot overflow.
        colour = np.minimum(row, share) * WHITE if premultiplied else row * share
        row[:] = (colour + (WHITE - share) * WHITE + 127) // WHITE
    return rgb


def _heic(data: bytes) -> Pixels:
    try:
        import pillow_heif
    except ImportError as error:
        raise PictureError(
            "unsupported_format", "HEIC pictures need one more package: pip install 'pawsort[heic]'"
        ) from error
    pillow_heif.options.DECODE_THREADS = 1
    try:
        stored = np.asarray(pillow_heif.open_heif(data, convert_hdr_to_8bit=True))
    except (ValueError, SyntaxError, RuntimeError, EOFError, OSError, LookupError) as error:
        raise PictureError("corrupt", f"the heic decoder refuses it: {error}") from error
    if stored.ndim == 2:
        return np.asarray(cv2.cvtColor(stored, cv2.COLOR_GRAY2RGB), np.uint8)
    if stored.shape[2] == 3:
        return np.asarray(stored, np.uint8)
    return _on_white(np.asarray(stored, np.uint8), premultiplied=False)


def _turn(code: int) -> Callable[[Pixels], Pixels]:
    return lambda pixels: np.asarray(cv2.rotate(pixels, code), np.uint8)


_TURNS: Final[dict[int, Callable[[Pixels], Pixels]]] = {
    1: lambda pixels: pixels,
    2: lambda pixels: np.asarray(cv2.flip(pixels, 1), np.uint8),
    3: _turn(cv2.ROTATE_180),
    4: lambda pixels: np.asarray(cv2.flip(pixels, 0), np.uint8),
    5: lambda pixels: np.asarray(cv2.transpose(pixels), np.uint8),
    6: _turn(cv2.ROTATE_90_CLOCKWISE),
    7: lambda pixels: np.asarray(cv2.rotate(cv2.transpose(pixels), cv2.ROTATE_180), np.uint8),
    8: _turn(cv2.ROTATE_90_COUNTERCLOCKWISE),
}


def _oriented(pixels: Pixels, orientation: int) -> Pixels:
    """Turn stored pixels (H, W, C) into pixels as shown; `orientation` is EXIF's number, 1 to 8."""
    return _TURNS[orientation](pixels)


# -- Sizes and views --------------------------------------------------------------------------------


def _reduced(pixels: Pixels, factor: int) -> Pixels:
    """Average squares of `factor` x `factor` pixels; OpenCV has a fast way for whole factors."""
    height, width = (max(side // factor, 1) for side in pixels.shape[:2])
    even = pixels[: height * factor, : width * factor]
    return np.asarray(cv2.resize(even, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _resized(pixels: Pixels, width: int, height: int) -> Pixels:
    """Resize (H, W, 3), anti-aliased when shrinking.

    cv2.INTER_AREA for a factor that is not whole takes 0.7 ms for a 437 px square to 224 px. Twice the
    target by linear interpolation, then averaging 2 x 2, takes 0.3 ms and comes closer to Pillow's
    anti-aliased bilinear filter (root mean square 1.0 grey levels instead of 1.4).
    """
    factor = min(pixels.shape[1] // width, pixels.shape[0] // height)
    if factor > 1:
        pixels = _reduced(pixels, factor)
    if pixels.shape[1] > width or pixels.shape[0] > height:
        pixels = np.asarray(
            cv2.resize(pixels, (2 * width, 2 * height), interpolation=cv2.INTER_LINEAR), np.uint8
        )
        return np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def view(pixels: Pixels, name: str, size: int) -> Pixels:
    """Make the (size, size, 3) picture that a model sees of decoded pixels (H, W, 3).

    "centre" is the middle square, 87.5 % of the short side; "whole" is everything, squeezed into a
    square; "-flipped" mirrors either, left to right. Raises ValueError for another name.
    """
    picture: Pixels = views(pixels, (name,), size)[0]
    return picture


def views(pixels: Pixels, names: Sequence[str], size: int, out: Pixels | None = None) -> Pixels:
    """Make several views at once: (V, size, size, 3), into `out` if given; a view and its mirror cost one resize."""
    pictures: Pixels = np.empty((len(names), size, size, 3), np.uint8) if out is None else out
    made: dict[str, Pixels] = {}
    for target, name in zip(pictures, names, strict=True):
        if name not in VIEWS:
            msg = f"unknown view {name!r}; known are {', '.join(VIEWS)}"
            raise ValueError(msg)
        base, _, flipped = name.partition("-")
        if base not in made:
            made[base] = _resized(_middle_square(pixels) if base == "centre" else pixels, size, size)
        if flipped:
            cv2.flip(made[base], 1, dst=target)
        else:
            target[:] = made[base]
    return pictures


def _middle_square(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    side = max(round(min(height, width) * CENTRE_SHARE), 1)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]


def whole(pixels: Pixels, short_side: int) -> Pixels:
    """Shrink decoded pixels (H, W, 3) to a short side of at most `short_side`, the shape kept.

    A picture stretched beyond MOST_STRETCH is shrunk further, to the area of a square of
    `short_side` times that.
    """
    height, width = pixels.shape[:2]
    scale = min(
        1.0, short_side / min(height, width), (MOST_STRETCH * short_side**2 / (height * width)) ** 0.5
    )
    if scale == 1:
        return pixels
    return _resized(pixels, max(int(width * scale), 1), max(int(height * scale), 1))
