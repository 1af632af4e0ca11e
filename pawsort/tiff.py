"""The pages of a TIFF file (Adobe TIFF 6.0; BigTIFF), without their pixels."""

import struct
from dataclasses import dataclass
from typing import Final

from pawsort.errors import PictureError

_WIDTH, _HEIGHT, _SUBFILE = 256, 257, 254
_ORIENTATION, _SUB_DIRECTORIES, _EXTRA_SAMPLES, _DNG_VERSION = 274, 330, 338, 50706
_STRIPS: Final = ((273, 279), (324, 325))  # (offsets, byte counts) of strips, of tiles
_DECODER_NEEDS: Final = frozenset({258, 320, 339, 347})  # bits, colour map, sample format, JPEG tables
_WANTED: Final = (
    _DECODER_NEEDS
    | {_WIDTH, _HEIGHT, _SUBFILE, _ORIENTATION, _SUB_DIRECTORIES, _EXTRA_SAMPLES, _DNG_VERSION}
    | {tag for pair in _STRIPS for tag in pair}
)
_TYPES: Final = dict(zip((1, 3, 4, 6, 7, 8, 9, 13, 16, 17, 18), "BHIbBhiIQqQ", strict=True))
_BIG: Final = 43  # the number that marks a BigTIFF, where a plain TIFF has 42
_MOST_PAGES: Final = 65_536  # more are not counted

ASSOCIATED: Final = 1  # an alpha that the colours were multiplied with
UNASSOCIATED: Final = 2  # an alpha that they were not


@dataclass(frozen=True, kw_only=True, slots=True)
class Pages:
    """The first page of a TIFF file, and how many there are."""

    width: int  # pixels as stored
    height: int
    orientation: int  # EXIF's numbers
    count: int
    extra_sample: int  # of the first sample behind the colours: see below; 0 where nothing is said


Directory = dict[int, tuple[int, ...]]


def read_pages(data: bytes) -> Pages:
    """Walk the directories of a TIFF file; every strip and tile must lie within the file.

    Raises PictureError "truncated", "corrupt", or "unsupported_format" for camera raw files that are TIFF
    inside; struct.error where a field lies beyond the end.
    """
    order = "<" if data[:2] == b"II" else ">"
    (version,) = struct.unpack_from(order + "H", data, 2)
    big = version == _BIG
    (position,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    first: Directory = {}
    seen: set[int] = set()
    while position and position not in seen and len(seen) < _MOST_PAGES:
        seen.add(position)
        directory, position = _read_directory(data, position, order, big=big)
        _check_extents(directory, len(data))
        first = first or directory
    if not first:
        raise PictureError("corrupt", "the tiff file has no page")
    if _DNG_VERSION in first or (_SUB_DIRECTORIES in first and first.get(_SUBFILE, (0,))[0] & 1):
        raise PictureError("unsupported_format", "camera raw is not read; export it as JPEG")
    orientation = first.get(_ORIENTATION, (1,))[0]
    return Pages(
        width=first.get(_WIDTH, (0,))[0],
        height=first.get(_HEIGHT, (0,))[0],
        orientation=orientation if orientation in range(1, 9) else 1,
        count=len(seen),
        extra_sample=first.get(_EXTRA_SAMPLES, (0,))[0],
    )


def _read_directory(data: bytes, position: int, order: str, *, big: bool) -> tuple[Directory, int]:
    """Read one directory: its integer fields that matter here, and where the next one lies."""
    count_code, entry_size, inline, value_code = ("Q", 20, 8, "Q") if big else ("H", 12, 4, "I")
    (entries,) = struct.unpack_from(order + count_code, data, position)
    position += struct.calcsize(count_code)
    if position + entries * entry_size > len(data):
        raise PictureError("truncated", f"the tiff file stops after {len(data)} bytes, within a directory")
    directory: Directory = {}
    for _ in range(entries):
        tag, kind, count = struct.unpack_from(order + "HH" + value_code, data, position)
        code = _TYPES.get(kind)
        if tag in _WANTED and code is not None and count:
            at = position + entry_size - inline
            size = count * struct.calcsize(code)
            if size > inline:
                (at,) = struct.unpack_from(order + value_code, data, at)
            if at + size > len(data):
                raise PictureError(
                    "truncated", f"the tiff file stops after {len(data)} bytes, before field {tag}"
                )
            directory[tag] = struct.unpack_from(f"{order}{count}{code}", data, at)
        position += entry_size
    (following,) = struct.unpack_from(order + value_code, data, position)
    return directory, following


def _check_extents(directory: Directory, size: int) -> None:
    for offsets, counts in _STRIPS:
        for offset, count in zip(directory.get(offsets, ()), directory.get(counts, ()), strict=False):
            if offset + count > size:
                raise PictureError(
                    "truncated", f"the tiff file stops after {size} bytes, before its pixels do"
                )
