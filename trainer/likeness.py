"""Perceptual hashes: which photos are the same picture, saved again in another size, quality or format, or mirrored.

Two 64-bit hashes are compared, because each alone has its accidents: the difference hash (is each cell of a 9x8
thumbnail brighter than its neighbour) and the DCT hash (which of the 64 lowest frequencies of a 32x32 thumbnail lie
above their median; Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

# At most this many of 64 bits may differ, in both hashes. Copies that were scaled, saved again or cropped by a
# few pixels differ by 0 to 6; the closest two different photos among 2,400 of three kinds of animals by 12.
NEAR = 8  # bits
_BLOCK = 4096  # rows compared at a time, to bound memory


class Likeness(NamedTuple):
    """The hashes of a photo, and those of its mirror image."""

    difference: int
    frequency: int
    mirrored_difference: int
    mirrored_frequency: int


def of(pixels: NDArray[np.uint8]) -> Likeness:
    """The perceptual hashes of a photo (h, w, 3) uint8 RGB."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    thumbnail = np.asarray(cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA), np.uint8)
    cells = np.asarray(cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA), np.uint8)
    return Likeness(
        _difference(cells), _frequency(thumbnail), _difference(cells[:, ::-1]), _frequency(thumbnail[:, ::-1])
    )


def group(photos: Sequence[Likeness]) -> list[int]:
    """Number the groups of near-duplicates: for each photo the index of the first photo of its group."""
    parents = list(range(len(photos)))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    signs = {field: _signs([getattr(photo, field) for photo in photos]) for field in Likeness._fields}
    for start in range(0, len(photos), _BLOCK):
        rows = slice(start, start + _BLOCK)
        near = np.zeros((len(signs["difference"][rows]), len(photos)), dtype=bool)
        for difference, frequency in (
            ("difference", "frequency"),
            ("mirrored_difference", "mirrored_frequency"),
        ):
            near |= (_distance(signs[difference][rows], signs["difference"]) <= NEAR) & (
                _distance(signs[frequency][rows], signs["frequency"]) <= NEAR
            )
        for row, column in np.argwhere(near).tolist():
            first, second = sorted((root(start + row), root(column)))
            parents[second] = first
    return [root(index) for index in range(len(photos))]


def _difference(cells: NDArray[np.uint8]) -> int:
    return _number(cells[:, 1:] > cells[:, :-1])


def _frequency(thumbnail: NDArray[np.uint8]) -> int:
    lowest = cv2.dct(thumbnail.astype(np.float32))[:8, :8].ravel()
    # Without the first, which is the mean brightness and dwarfs the others.
    return _number(lowest > np.median(lowest[1:]))


def _number(bits: NDArray[np.bool_]) -> int:
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _signs(hashes: list[int]) -> NDArray[np.float32]:
    """Each hash as 64 numbers, +1 or -1: then a product of two counts the bits in which they agree."""
    octets = np.frombuffer(b"".join(number.to_bytes(8, "big") for number in hashes), dtype=np.uint8)
    signs: NDArray[np.float32] = np.unpackbits(octets.reshape(-1, 8), axis=1).astype(np.float32) * 2 - 1
    return signs


def _distance(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    """Number of differing bits between each of `first` (n, 64) and each of `second` (m, 64)."""
    bits: NDArray[np.float32] = (np.float32(64) - first @ second.T) / np.float32(2)
    return bits
