"""Whoever wants to know how a piece of work goes on: the command line's screen, or nobody."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from trainer.fit import Progress


class Listener(Protocol):
    """Told what is being done, while it is being done."""

    def stage(self, title: str) -> None:
        """A new part of the work begins."""

    def counted(self, done: int, total: int) -> None:
        """That part has done so much."""

    def trained(self, progress: Progress) -> None:
        """The training loop has done a step."""

    def note(self, text: str) -> None:
        """Something a person should know."""


class Silent:
    """A listener that tells nobody."""

    def stage(self, title: str) -> None:
        """See Listener."""

    def counted(self, done: int, total: int) -> None:
        """See Listener."""

    def trained(self, progress: Progress) -> None:
        """See Listener."""

    def note(self, text: str) -> None:
        """See Listener."""


def ignored(*_: object) -> None:
    """A progress callback for whoever wants none."""
