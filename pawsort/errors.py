"""The exception tree.

PawsortError
├── ConfigError      the settings cannot be used; carries every problem found, not only the first
├── ModelError       a model on disk, or what it answers, cannot be used
├── DataError        the photos given to learn from cannot be used (no photos, one class only, ...)
├── LedgerError      the record of decisions cannot be read or written, or contradicts itself
├── MachineError     the machine failed (disk, memory, permission, processes): never the photo's fault
└── PictureError     one photo cannot be turned into a picture: the photo's own fault, with the reason
"""

from collections.abc import Sequence
from typing import Final

PICTURE_REASONS: Final = {
    "empty": "the file has no bytes",
    "not_an_image": "the bytes are not those of a picture",
    "unsupported_format": "a picture, in a format that is not read here",
    "truncated": "the end is missing; an upload may still be under way",
    "changed": "the file changed while it was read; somebody may still be writing it",
    "corrupt": "a supported format whose bytes contradict themselves",
    "too_large": "over one of the limits: bytes, pixels, side, frames or memory",
    "decoder_died": "the decoder crashed on it, twice",
    "decoder_timed_out": "the decoder did not finish in time, twice",
}
"""Every reason a PictureError may carry, and what it means."""

PASSING_REASONS: Final = frozenset({"empty", "truncated", "changed"})
"""Reasons that may heal by waiting, because a young file may still be growing."""


class PawsortError(Exception):
    """The root: every error that pawsort raises on purpose."""


class ConfigError(PawsortError):
    """The settings cannot be used.

    `problems` holds one line for each, in the order found, naming the key's path and the remedy.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        if isinstance(problems, str):
            problems = (problems,)
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class ModelError(PawsortError):
    """A model on disk, or what it answers, cannot be used."""


class DataError(PawsortError):
    """The photos given to learn from cannot be used."""


class LedgerError(PawsortError):
    """The record of decisions cannot be read or written, or contradicts itself."""


class MachineError(PawsortError):
    """The machine failed, not the photo: try again once it is cured."""


class PictureError(PawsortError):
    """One photo cannot be turned into a picture.

    `reason` is one of PICTURE_REASONS, for programs; the message is for people.
    """

    def __init__(self, reason: str, message: str) -> None:
        if reason not in PICTURE_REASONS:
            known = ", ".join(PICTURE_REASONS)
            msg = f"unknown reason {reason!r}; the reasons are {known}"
            raise ValueError(msg)
        self.reason = reason
        super().__init__(message)

    def __reduce__(self) -> tuple[type["PictureError"], tuple[str, str]]:
        """Rebuild with the reason too: Exception alone would hand over the message only."""
        return type(self), (self.reason, str(self))
