"""What a decoder process and its parent agree on: the messages' size, and where in shared memory pictures lie."""

import mmap
import struct
from dataclasses import dataclass
from typing import Final, Self

from pawsort.render import Render

REQUEST_BYTES: Final = 256
REPLY_BYTES: Final = 16_384
"""No message between the two is longer."""

READING: Final = 1
DECODING: Final = 2
"""Stages of a photo: a read that hangs is the machine's fault, a decoder that hangs the photo's."""

BEGUN: Final = struct.Struct("=Q")
"""At the start of the shared memory: how many photos the worker has begun."""

STAGE_AT: Final = BEGUN.size
"""Offset of the byte that holds the stage of the latest photo."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """The memory that a decoder shares with its parent: a page with BEGUN and the stage, then the slots.

    A slot holds the views of one photo, then the whole picture.
    """

    views: tuple[int, int, int, int]  # (V, S, S, 3)
    whole_bytes: int  # room for the whole picture
    slots: int

    @classmethod
    def of(cls, render: Render, slots: int) -> Self:
        """Lay out what a render makes of `slots` photos."""
        views = (len(render.views), render.size, render.size, 3)
        return cls(views=views, whole_bytes=render.whole_bytes, slots=slots)

    @property
    def views_bytes(self) -> int:
        """Bytes of all views of a photo."""
        count, size, _, channels = self.views
        return count * size * size * channels

    @property
    def slot_bytes(self) -> int:
        """Bytes of a slot, in whole pages."""
        used = self.views_bytes + self.whole_bytes
        return -(-used // mmap.PAGESIZE) * mmap.PAGESIZE

    @property
    def total_bytes(self) -> int:
        """Bytes of the whole mapping."""
        return self.slot(self.slots)

    def slot(self, number: int) -> int:
        """Offset of a slot."""
        return mmap.PAGESIZE + number * self.slot_bytes
