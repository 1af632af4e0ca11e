"""The orientation that an EXIF block states (CIPA DC-008, tag 0x0112)."""

import struct
from typing import Final

ORIENTATION_TAG: Final = 0x0112
_SHORT: Final = 3
_ORIENTATIONS: Final = range(1, 9)


def orientation(block: bytes) -> int:
    """Read the orientation from an EXIF block, which is a little TIFF file.

    Returns 1 to 8; 1 ("as stored") where the block states none or is damaged: a photo is not refused
    for its metadata.
    """
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(order + "I", block, 4)
        (entries,) = struct.unpack_from(order + "H", block, directory)
        for i in range(entries):
            tag, kind = struct.unpack_from(order + "HH", block, directory + 2 + 12 * i)
            if tag == ORIENTATION_TAG and kind == _SHORT:
                (value,) = struct.unpack_from(order + "H", block, directory + 2 + 12 * i + 8)
                return value if value in _ORIENTATIONS else 1
    except struct.error:
        return 1
    return 1
