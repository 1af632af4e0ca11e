"""What may be spent on a photo, and what is to be made of it: no more than numbers and names.

Apart from image.py so that a process which decodes nothing itself, such as the daemon, does not load OpenCV.
"""

from dataclasses import dataclass
from typing import Final

from pawsort.errors import PictureError
from pawsort.header import Header

CENTRE_SHARE: Final = 0.875
"""Share of the short side that the view "centre" keeps: 224 of 256, torchvision's evaluation crop."""

VIEWS: Final = ("centre", "centre-flipped", "whole", "whole-flipped")
"""The names that `view` knows."""

MOST_STRETCH: Final = 4
"""A whole picture that is kept has at most this many times the area of a square of its short side's limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one photo may cost. Over it, it is refused as "too_large" before memory is spent."""

    bytes: int = 256 << 20  # of the file
    pixels: int = 100_000_000  # width times height
    side: int = 32_768  # pixels, width and height alike
    frames: int = 10_000  # pages or animation frames, of which only the first is decoded
    seconds: float = 20.0  # from when a worker starts on it until it is killed
    memory_bytes: int = 1 << 30  # address space for one photo, on top of the idle worker's own


def check(header: Header, limits: Limits) -> None:
    """Hold a header against the limits; PictureError "too_large" names the limit and the figure."""
    for figure, limit, unit in (
        (max(header.width, header.height), limits.side, "pixels a side"),
        (header.width * header.height, limits.pixels, "pixels"),
        (header.frames, limits.frames, "frames"),
    ):
        if figure > limit:
            raise PictureError("too_large", f"{figure:,} {unit}, over the limit of {limit:,}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Render:
    """What a decoder makes of a photo."""

    size: int  # side of the square views, pixels
    views: tuple[str, ...] = ("centre",)  # some of VIEWS
    keep_short_side: int | None = None  # hand back the whole picture too, its short side at most this

    def __post_init__(self) -> None:
        """Refuse what no decoder could make."""
        unknown = sorted(set(self.views) - set(VIEWS))
        if unknown:
            msg = f"unknown views {unknown}; known are {', '.join(VIEWS)}"
            raise ValueError(msg)
        if self.size < 1 or (self.keep_short_side is not None and self.keep_short_side < 1):
            sides = f"size={self.size}, keep_short_side={self.keep_short_side}"
            raise ValueError(f"a picture needs a side of at least 1 pixel, not {sides}")

    @property
    def short_side(self) -> int:
        """The short side to decode at: no view and no whole picture needs more."""
        needs = [
            round(self.size / CENTRE_SHARE) if name.startswith("centre") else self.size for name in self.views
        ]
        return max(*needs, self.keep_short_side or 1, 1)

    @property
    def whole_bytes(self) -> int:
        """The most bytes that a whole picture takes."""
        return 3 * MOST_STRETCH * (self.keep_short_side or 0) ** 2
