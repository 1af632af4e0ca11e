"""Many files -> pictures, through the decoders that the daemon uses; what cannot be read is skipped and told."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pawsort import decoders, image

# Short enough for Ctrl-C to feel prompt, long enough to cost nothing.
_POLL = 0.5  # seconds


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A file that no picture can be made of, and why."""

    path: Path
    reason: str
    message: str
    sha256: str | None = None  # of its content, where that is known


def read(
    paths: Sequence[Path], render: image.Render, limits: image.Limits, *, workers: int
) -> Iterator[tuple[int, decoders.Decoded | Skipped]]:
    """Index into `paths` and what became of that file, each file once, in the order in which they are done.

    Decoding runs ahead of the caller by no more than the pool holds.
    """
    waiting = list(range(len(paths)))[::-1]
    with decoders.DecoderPool(workers, render, limits) as pool:
        while waiting or pool.busy:
            while waiting and pool.free > 0:
                index = waiting.pop()
                try:
                    descriptor = open_regular(paths[index])
                except OSError as error:
                    yield (
                        index,
                        Skipped(path=paths[index], reason="unreadable", message=str(error.strerror or error)),
                    )
                else:
                    pool.submit(index, descriptor)
            for outcome in pool.poll(_POLL):
                path = paths[outcome.ticket]
                if isinstance(outcome, decoders.Decoded):
                    yield outcome.ticket, outcome
                elif isinstance(outcome, decoders.Undecodable):
                    reason, message = outcome.error.reason, str(outcome.error)
                    skipped = Skipped(path=path, reason=reason, message=message, sha256=outcome.sha256)
                    yield outcome.ticket, skipped
                else:
                    yield outcome.ticket, Skipped(path=path, reason="unreadable", message=str(outcome.error))


def open_regular(path: Path) -> int:
    """A descriptor of the regular file `path`, or OSError. Never waits, as opening a named pipe would."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(None, "is not a regular file")
    return descriptor
