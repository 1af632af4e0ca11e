"""Train-time pictures: what a photo might also have looked like.

Every function takes and gives (h, w, 3) uint8 RGB and draws from the generator it is handed, so that a seed and a
step number decide each picture, on whatever thread it is made. Only OpenCV's own loops run over pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Generator = np.random.Generator


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How strongly pictures are changed. Chances are a picture's, 0..1."""

    whole: float = 0.3  # chance that nearly the whole photo is squeezed into the square
    small: float = 0.1  # chance that the whole photo is shrunk onto a background
    least_area: float = 0.35  # of a crop, as a share of the photo's area
    colour: float = 1.0  # strength of changes in brightness, contrast, saturation and tint
    grey: float = 0.1  # chance of greyscale
    blur: float = 0.1  # chance of a lower resolution
    style: float = 0.15  # chance of a drawing's or a print's look


def batch(photos: Sequence[Pixels], size: int, how: Augmentation, random: Generator) -> Pixels:
    """One changed picture of each photo: (n, size, size, 3)."""
    pictures = np.empty((len(photos), size, size, 3), dtype=np.uint8)
    for picture, photo in zip(pictures, photos, strict=True):
        picture[:] = _augmented(photo, size, how, random)
    return pictures


def _augmented(photo: Pixels, size: int, how: Augmentation, random: Generator) -> Pixels:
    framing = random.random()
    if framing < how.whole:
        picture = _squeezed(photo, size, random)
    elif framing < how.whole + how.small:
        picture = _shrunk(photo, size, random)
    else:
        picture = _cropped(photo, size, how.least_area, random)
    if random.random() < 0.5:
        picture = np.asarray(cv2.flip(picture, 1), np.uint8)
    if random.random() < how.blur:
        picture = _blurred(picture, random)
    if random.random() < how.style:
        picture = STYLES[random.integers(len(STYLES))](picture, random)
    return _recoloured(picture, how, random)


# -- Framing: which part of the photo fills the square ---------------------------------------------


def _cropped(photo: Pixels, size: int, least_area: float, random: Generator) -> Pixels:
    """A random part of the photo, its shape between 3:4 and 4:3 (Szegedy et al. 2015, "Inception" crops)."""
    height, width = photo.shape[:2]
    for _ in range(10):
        area = random.uniform(least_area, 1.0) * height * width
        shape = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = max(round((area * shape) ** 0.5), 1), max(round((area / shape) ** 0.5), 1)
        if w <= width and h <= height:
            break
    else:  # a photo so long that no such part fits: a square
        w = h = min(height, width)
    top, left = random.integers(height - h + 1), random.integers(width - w + 1)
    return _resized(photo[top : top + h, left : left + w], size, size)


def _squeezed(photo: Pixels, size: int, random: Generator) -> Pixels:
    """Nearly the whole photo, squeezed: the daemon's view "whole", with up to a tenth missing at each edge."""
    height, width = photo.shape[:2]
    left, right = (random.uniform(0, 0.1, 2) * width).astype(int)
    top, bottom = (random.uniform(0, 0.1, 2) * height).astype(int)
    return _resized(photo[top : height - bottom, left : width - right], size, size)


def _shrunk(photo: Pixels, size: int, random: Generator) -> Pixels:
    """The whole photo, smaller and somewhere on a plain or blurred background: animals can be small."""
    height, width = photo.shape[:2]
    scale = random.uniform(0.45, 0.95) * size / max(height, width)
    h, w = max(int(height * scale), 1), max(int(width * scale), 1)
    if random.random() < 0.5:
        blurred = np.asarray(cv2.blur(_resized(photo, 32, 32), (5, 5)), np.uint8)
        picture = _resized(blurred, size, size)
    else:
        picture = np.empty((size, size, 3), dtype=np.uint8)
        picture[:] = random.integers(0, 256, 3)
    top, left = random.integers(size - h + 1), random.integers(size - w + 1)
    picture[top : top + h, left : left + w] = _resized(photo, w, h)
    return picture


def _resized(pixels: Pixels, width: int, height: int) -> Pixels:
    shrinks = pixels.shape[0] > height or pixels.shape[1] > width
    return np.asarray(
        cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR),
        np.uint8,
    )


# -- Colour and sharpness ---------------------------------------------------------------------------


def _blurred(picture: Pixels, random: Generator) -> Pixels:
    """The picture as a far smaller one would look."""
    size = len(picture)
    side = max(int(size * random.uniform(0.2, 0.6)), 1)
    return _resized(_resized(picture, side, side), size, size)


_LUMA = np.array([0.299, 0.587, 0.114])  # of red, green and blue, ITU-R BT.601


def _recoloured(picture: Pixels, how: Augmentation, random: Generator) -> Pixels:
    """Saturation, tint, contrast and brightness in one matrix, or greyscale."""
    grey = random.random() < how.grey
    if not (grey or how.colour):
        return picture
    saturation = 0.0 if grey else 1 + how.colour * random.uniform(-0.4, 0.4)
    matrix = saturation * np.eye(3) + (1 - saturation) * np.tile(_LUMA, (3, 1))
    if random.random() < 0.3 * how.colour:
        matrix = random.uniform(0.8, 1.2, (3, 1)) * matrix
    contrast = 1 + how.colour * random.uniform(-0.4, 0.4)
    brightness = how.colour * random.uniform(-0.3, 0.3) * 128
    offset = (1 - contrast) * float(picture.mean()) + brightness
    transform = np.hstack([contrast * matrix, np.full((3, 1), offset)])
    return np.asarray(cv2.transform(picture, transform), np.uint8)


# -- Styles: drawings, prints, paintings ------------------------------------------------------------


def _posterised(picture: Pixels, random: Generator) -> Pixels:
    levels = int(random.integers(3, 6))
    table = np.floor(np.arange(256) / 256 * levels) * (255 / (levels - 1))
    return np.asarray(cv2.LUT(picture, table.astype(np.uint8)), np.uint8)


def _cartoon(picture: Pixels, random: Generator) -> Pixels:
    """Flat colours inside black outlines."""
    outlines = cv2.adaptiveThreshold(
        cv2.medianBlur(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), 3),
        255,
        cv2.ADAPTIVE_THRESH_MEAN_C,
        cv2.THRESH_BINARY,
        7,
        int(random.integers(3, 8)),
    )
    flat = cv2.bilateralFilter(cv2.medianBlur(picture, 5), 5, 60, 5) // 32 * 32 + 16
    return np.asarray(cv2.bitwise_and(flat, flat, mask=outlines), np.uint8)


def _pencil(picture: Pixels, random: Generator) -> Pixels:
    """Grey divided by its own blur: lines on white paper."""
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    drawn = cv2.divide(grey, cv2.GaussianBlur(grey, (0, 0), float(random.uniform(2, 6))), scale=245)
    return np.asarray(cv2.cvtColor(drawn, cv2.COLOR_GRAY2RGB), np.uint8)


def _painted(picture: Pixels, random: Generator) -> Pixels:
    return np.asarray(cv2.medianBlur(picture, int(random.choice([5, 7, 9]))), np.uint8)


def _ink(picture: Pixels, random: Generator) -> Pixels:
    """Nearly black and white."""
    middle, softness = random.uniform(80, 150), random.uniform(5, 20)
    table = 255 / (1 + np.exp(-(np.arange(256) - middle) / softness))
    grey = cv2.LUT(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), table.astype(np.uint8))
    return np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), np.uint8)


def _toned(picture: Pixels, random: Generator) -> Pixels:
    """A random rising curve for each channel."""
    knots = np.sort(random.uniform(-0.1, 1.1, (3, 4)), axis=1)
    curves = [np.interp(np.linspace(0, 1, 256), [0, 1 / 3, 2 / 3, 1], channel) for channel in knots]
    table = (np.clip(np.stack(curves, axis=1), 0, 1) * 255).astype(np.uint8)
    return np.asarray(cv2.LUT(picture, table[None]), np.uint8)


STYLES: tuple[Callable[[Pixels, Generator], Pixels], ...] = (
    _posterised,
    _cartoon,
    _pencil,
    _painted,
    _ink,
    _toned,
)
