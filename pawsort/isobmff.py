"""The primary picture of an AVIF or HEIC file (ISO/IEC 14496-12 boxes, ISO/IEC 23008-12 items)."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from pawsort.errors import PictureError

# (quarter turns anti-clockwise, mirror) -> EXIF's number; the turn comes first (ISO/IEC 23000-22, 7.3.6.7).
# Mirror 0 exchanges top and bottom, 1 left and right.
_ORIENTATIONS: Final = {
    (0, None): 1, (1, None): 8, (2, None): 3, (3, None): 6,
    (0, 0): 4, (1, 0): 5, (2, 0): 2, (3, 0): 7,
    (0, 1): 2, (1, 1): 7, (2, 1): 4, (3, 1): 5,
}  # fmt: skip

_OUTERMOST: Final = frozenset({b"ftyp", b"meta", b"mdat", b"moov", b"free", b"skip", b"uuid", b"mini"})
"""The boxes that a file is made of; what follows them is no part of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Primary:
    """What is known of the primary picture without decoding it."""

    width: int  # pixels as stored, before the turn
    height: int
    orientation: int  # EXIF's numbers


@dataclass(frozen=True, slots=True)
class _Box:
    kind: bytes
    start: int  # of the contents
    end: int


def read_primary(data: bytes) -> Primary:
    """Find the primary picture: its size and its turn.

    Raises PictureError "truncated" when a box or a picture's bytes lie beyond the end of the file,
    "corrupt" when there is no primary picture; struct.error where a field lies beyond the end.
    """
    inside = _description(data)
    item = _primary_item(data, inside[b"pitm"])
    width = height = turn = 0
    mirror: int | None = None
    for prop in _properties(data, inside[b"iprp"], item):
        if prop.kind == b"ispe":
            width, height = struct.unpack_from(">II", data, prop.start + 4)
        elif prop.kind == b"irot":
            turn = data[prop.start] & 3
        elif prop.kind == b"imir":
            mirror = data[prop.start] & 1
    end = _last_byte(data, inside[b"iloc"])
    if end > len(data):
        raise PictureError("truncated", f"the file stops after {len(data)} of {end} bytes")
    return Primary(width=width, height=height, orientation=_ORIENTATIONS[turn, mirror])


def _description(data: bytes) -> dict[bytes, _Box]:
    """The boxes inside the file's `meta` box, by kind; every outermost box must lie within the file."""
    meta = None
    for box in _boxes(data, 0, len(data)):
        if box.end > len(data) and box.kind in _OUTERMOST:
            name = box.kind.decode("latin-1")
            raise PictureError("truncated", f"the file stops after {len(data)} bytes, within its {name} part")
        if box.kind == b"meta" and meta is None:
            meta = box
    if meta is None:
        raise PictureError("truncated", f"the file stops after {len(data)} bytes, before its description")
    inside = {box.kind: box for box in _boxes(data, meta.start + 4, meta.end)}
    if not inside.keys() >= {b"pitm", b"iprp", b"iloc"}:
        raise PictureError("corrupt", "the file does not name a primary picture")
    return inside


def _boxes(data: bytes, start: int, end: int) -> Iterator[_Box]:
    """Walk the boxes between two offsets; the last may say that it ends beyond."""
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        header = 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, start + 8)
            header = 16
        elif size == 0:
            size = end - start
        if size < header or not kind.isascii():
            return  # trailing bytes that are no box
        yield _Box(kind, start + header, start + size)
        start += size


def _primary_item(data: bytes, box: _Box) -> int:
    code = ">H" if data[box.start] == 0 else ">I"
    (item,) = struct.unpack_from(code, data, box.start + 4)
    return int(item)


def _properties(data: bytes, box: _Box, item: int) -> Iterator[_Box]:
    """The properties that belong to one item, in the order of their association."""
    inside = {inner.kind: inner for inner in _boxes(data, box.start, box.end)}
    if not inside.keys() >= {b"ipco", b"ipma"}:
        raise PictureError("corrupt", "the file does not describe its primary picture")
    known = list(_boxes(data, inside[b"ipco"].start, inside[b"ipco"].end))
    position = inside[b"ipma"].start
    version, wide = data[position], data[position + 3] & 1
    (entries,) = struct.unpack_from(">I", data, position + 4)
    position += 8
    for _ in range(entries):
        (owner,) = struct.unpack_from(">I" if version else ">H", data, position)
        position += 4 if version else 2
        associations = data[position]
        position += 1
        for _ in range(associations):
            (index,) = struct.unpack_from(">H" if wide else ">B", data, position)
            position += 2 if wide else 1
            index &= 0x7FFF if wide else 0x7F  # the top bit says "essential"
            if owner == item and 0 < index <= len(known):
                yield known[index - 1]


def _last_byte(data: bytes, box: _Box) -> int:
    """The end of the last stretch of the file that any item's bytes lie in; 0 where none lies in the file itself."""
    version = data[box.start]
    offset_size, length_size = data[box.start + 4] >> 4, data[box.start + 4] & 15
    base_size, index_size = data[box.start + 5] >> 4, data[box.start + 5] & 15 if version else 0
    position = box.start + 6

    def number(size: int) -> int:
        nonlocal position
        if position + size > len(data):
            raise PictureError("truncated", f"the file stops after {len(data)} bytes, within its description")
        position += size
        return int.from_bytes(data[position - size : position], "big")

    wide = version == 2
    extent_bytes = index_size + offset_size + length_size
    last = 0
    for _ in range(number(4 if wide else 2)):
        number(4 if wide else 2)
        method = number(2) & 15 if version else 0
        number(2)
        base = number(base_size)
        extents = number(2)
        # Without this, a few bytes could announce billions of stretches that take no bytes to describe.
        for _ in range(extents if extent_bytes else min(extents, 1)):
            number(index_size)
            offset, length = base + number(offset_size), number(length_size)
            if method == 0:
                last = max(last, offset + length)
    return last
