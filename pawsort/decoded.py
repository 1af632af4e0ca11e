"""What comes back from the decoders: a picture, or one of two reasons why there is none."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pawsort.errors import MachineError, PictureError
from pawsort.header import Header


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """A photo turned into pictures."""

    ticket: int
    sha256: str  # of the bytes that were decoded
    bytes: int
    header: Header
    views: npt.NDArray[np.uint8]  # (V, S, S, 3) RGB, in the order of render.views
    whole: npt.NDArray[np.uint8] | None  # (h, w, 3) RGB when render.keep_short_side is set
    read_ms: float  # reading and hashing
    decode_ms: float  # from header to pictures


@dataclass(frozen=True, kw_only=True, slots=True)
class Undecodable:
    """A photo that no picture can be made of, by its own fault."""

    ticket: int
    sha256: str | None  # None where the bytes were not read: too many, or changing
    bytes: int
    error: PictureError


@dataclass(frozen=True, kw_only=True, slots=True)
class Unreadable:
    """A photo that the machine could not read: nothing is known about it."""

    ticket: int
    error: MachineError


Result = Decoded | Undecodable | Unreadable
