"""The photos that are in the decoders, and whose they are."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from daemon.intake import Ready
from pawsort.bundle import Bundle
from pawsort.config import Settings
from pawsort.decoders import DecoderPool, Result
from pawsort.render import Limits, Render

STUCK_AFTER = 4  # times the deadline of a photo without any answer, and the decoders count as stuck


class Decoding:
    """A pool of decoders that makes the pictures one model wants; use it as a context manager."""

    def __init__(self, settings: Settings, model: Bundle) -> None:
        self._workers = settings.decoders
        self._limits = Limits(**settings.limits.model_dump())
        self._render = _render(model)
        self._pool = DecoderPool(self._workers, self._render, self._limits)
        self._in_flight: dict[int, Ready] = {}
        self._next_ticket = 0
        self._gave_at = time.monotonic()  # when it last gave something, or had nothing to do

    def __enter__(self) -> Self:
        """Start the decoders. Raises MachineError when not one can be started."""
        self._pool.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.__exit__(kind, error, trace)

    def __len__(self) -> int:
        """How many photos are in the decoders."""
        return len(self._in_flight)

    @property
    def free(self) -> int:
        """How many more photos may be submitted now."""
        return self._pool.free

    @property
    def filenos(self) -> tuple[int, ...]:
        """Descriptors that become readable when there is something to collect."""
        return self._pool.filenos

    @property
    def patience(self) -> float:
        """Seconds after which `collect` wants to be called all the same."""
        return self._pool.patience

    @property
    def fault(self) -> str | None:
        """Why decoders are missing, if they are."""
        return str(self._pool.fault) if self._pool.fault else None

    def seem_stuck(self) -> bool:
        """Whether photos went in and nothing has come out for much longer than any photo may take."""
        if not self._in_flight:
            self._gave_at = time.monotonic()
        return time.monotonic() - self._gave_at > STUCK_AFTER * self._limits.seconds

    def submit(self, ready: Ready) -> None:
        """Decode this photo; its descriptor is ours from now on."""
        self._next_ticket += 1
        self._in_flight[self._next_ticket] = ready
        self._pool.submit(self._next_ticket, ready.descriptor)

    def collect(self) -> list[tuple[Ready, Result]]:
        """What has come out meanwhile. Raises MachineError when there have been no decoders for long."""
        results = self._pool.poll(0.0)
        if results:
            self._gave_at = time.monotonic()
        return [(self._in_flight.pop(result.ticket), result) for result in results]

    def adapt_to(self, model: Bundle) -> bool:
        """Make the pictures that `model` wants from now on; False when photos in the decoders stand in the way."""
        render = _render(model)
        if render == self._render:
            return True
        if self._in_flight:
            return False
        fresh = DecoderPool(self._workers, render, self._limits)
        fresh.__enter__()
        self._pool.close()
        self._pool, self._render = fresh, render
        return True


def _render(model: Bundle) -> Render:
    return Render(size=model.size, views=model.views)
