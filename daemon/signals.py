"""Signals and other threads wake the loop through a pipe; a handler notes what was asked and does nothing else."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType


class Waker:
    """Something to sleep on that any thread, and any signal, can end."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.stop_signal: str | None = None  # name of the signal that asked us to stop
        self.reload_asked = False  # by SIGHUP

    def close(self) -> None:
        """Close the pipe."""
        os.close(self._reader)
        os.close(self._writer)

    def wake(self) -> None:
        """End the current or the next `sleep`."""
        with suppress(BlockingIOError):  # the pipe is full: the sleeper is about to wake anyway
            os.write(self._writer, b".")

    def sleep(self, seconds: float, descriptors: Sequence[int]) -> None:
        """Sleep until `wake`, a signal, or until one of `descriptors` can be read, but no longer than `seconds`."""
        poller = select.poll()
        for descriptor in (self._reader, *descriptors):
            poller.register(descriptor, select.POLLIN)
        poller.poll(seconds * 1e3)
        with suppress(BlockingIOError):
            while os.read(self._reader, 4096):
                pass

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Install the signal handlers, and put the old ones back."""
        before = {number: signal.signal(number, self._on_stop) for number in (signal.SIGTERM, signal.SIGINT)}
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._on_reload)
        # A writer that opens a file on which a read lease is just being tried sends us this; its default is to kill.
        before[signal.SIGIO] = signal.signal(signal.SIGIO, signal.SIG_IGN)
        wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_reload(self, _number: int, _frame: FrameType | None) -> None:
        self.reload_asked = True

    def _on_stop(self, number: int, _frame: FrameType | None) -> None:
        self.stop_signal = self.stop_signal or signal.Signals(number).name
