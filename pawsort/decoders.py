"""A pool of decoder processes that may die: open files go in, pictures in memory come out.

Hostile bytes crash image codecs or send them into loops, so they run in processes of their own
(decode_worker.py). This end never decodes. It is single-threaded and never blocks but in `poll`:

    with DecoderPool(2, render, limits) as pool:
        while work or pool.busy:
            while work and pool.free:
                pool.submit(ticket, descriptor)
            for result in pool.poll(1.0):
                ...

Every ticket comes back exactly once, as one of

- Decoded       the pictures;
- Undecodable   the photo's own fault, with a PictureError;
- Unreadable    the machine's fault while reading, with a MachineError: try again when it is cured.

A worker that dies, or that spends longer than `limits.seconds` on a photo, is killed and replaced at
once. The photo it had in hand is tried once more, alone on a fresh worker, and then given up; those
queued behind it start over and are not counted against.

A worker that cannot be started is the machine's fault and no photo's: the pool tries again by itself,
with growing pauses, and `fault` says why meanwhile. Photos wait. `poll` raises that MachineError only
when there has been no worker at all for NO_WORKER_SECONDS; nothing is lost by it, call `poll` again.
"""

import hashlib
import os
import selectors
import subprocess
import time
from collections import deque
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

import orjson

from pawsort.decoded import Decoded, Result, Undecodable, Unreadable
from pawsort.decoder_process import DecoderProcess
from pawsort.errors import MachineError, PictureError
from pawsort.header import Header
from pawsort.render import Limits, Render

DEPTH: Final = 8
"""Photos at a worker at once, so that it does not idle while its parent classifies and files a batch."""

START_SECONDS: Final = 60.0
"""A worker that is not ready after this long will not be; a busy machine needs a few seconds."""

NO_WORKER_SECONDS: Final = 10.0
"""How long `poll` keeps to itself that no worker at all can be started."""

_FIRST_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 5.0

__all__ = ["Decoded", "DecoderPool", "Result", "Undecodable", "Unreadable"]


@dataclass(slots=True)
class _Job:
    ticket: int
    descriptor: int
    suspect: bool = False  # a worker died or hung with it in hand: next time it is alone


@dataclass(slots=True, eq=False)
class _Worker:
    process: DecoderProcess
    since: float  # when it was started, or when its oldest photo was begun
    ready: bool = False
    sent: int = 0
    queue: deque[_Job] = field(default_factory=deque)


def _header(format: str, width: int, height: int, frames: int, orientation: int) -> Header:  # noqa: A002
    return Header(format=format, width=width, height=height, frames=frames, orientation=orientation)


class DecoderPool:
    """`workers` processes that decode, each with up to `depth` photos; a context manager, for one thread.

    That thread must live as long as the pool: the kernel kills the workers when it ends.
    """

    def __init__(self, workers: int, render: Render, limits: Limits, depth: int = DEPTH) -> None:
        if workers < 1 or depth < 1:
            raise ValueError(f"a pool needs a worker and room for a photo, not {workers} and {depth}")
        self._size = workers
        self._render = render
        self._limits = limits
        self._depth = depth
        self._workers: list[_Worker] = []
        self._waiting: deque[_Job] = deque()
        self._suspects: deque[_Job] = deque()
        self._undead: list[subprocess.Popen[bytes]] = []
        self._selector = selectors.EpollSelector()
        self._results: list[Result] = []
        self._fault: MachineError | None = None
        self._pause = _FIRST_PAUSE_SECONDS
        self._start_at = 0.0
        self._no_worker_since: float | None = None
        self.deaths = 0
        """Workers that ended, of all causes: crashed, hung, killed by others, or gone because they had leaked."""

    def __enter__(self) -> Self:
        """Start the workers, without waiting for them; MachineError if not one can be started."""
        self._start_missing()
        if not self._workers and self._fault is not None:
            self.close()
            raise self._fault
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill the workers and close the files of all photos still in the pool."""
        self.close()

    def close(self) -> None:
        """Kill the workers and close the files of all photos still in the pool; their tickets never come back."""
        for worker in list(self._workers):
            self._bury(worker)
            self._waiting.extend(worker.queue)
        for job in (*self._waiting, *self._suspects):
            os.close(job.descriptor)
        self._waiting.clear()
        self._suspects.clear()
        self._selector.close()

    # -- What the caller sees -----------------------------------------------------------------------

    @property
    def busy(self) -> int:
        """Photos submitted that have not come back."""
        return len(self._waiting) + len(self._suspects) + sum(len(worker.queue) for worker in self._workers)

    @property
    def free(self) -> int:
        """How many more photos may be submitted now."""
        return max(self._depth * self._size - self.busy - len(self._results), 0)

    @property
    def fault(self) -> MachineError | None:
        """Why workers are missing at present, or None."""
        return self._fault

    @property
    def pids(self) -> tuple[int, ...]:
        """The process ids of the workers."""
        return tuple(worker.process.pid for worker in self._workers)

    @property
    def filenos(self) -> tuple[int, ...]:
        """What to wait on for reading in a selector of one's own; the same as long as the pool lives.

        Call `poll(0)` when one is readable, and at least every `patience` seconds besides: a worker
        that hangs says nothing.
        """
        return (self._selector.fileno(),)

    @property
    def patience(self) -> float:
        """Seconds until the pool wants to be polled although nothing is readable."""
        now = time.monotonic()
        times = [self._deadline(worker) for worker in self._workers if worker.queue or not worker.ready]
        if len(self._workers) < self._size:
            times.append(self._start_at)
        return max(min(times, default=now + self._limits.seconds) - now, 0.0)

    def submit(self, ticket: int, fd: int) -> None:
        """Queue a photo: `fd` is an open regular file, which the pool reads from its start and closes.

        ValueError when `free` is 0; the file then stays the caller's.
        """
        if not self.free:
            raise ValueError(f"the decoder pool is full with {self.busy} photos; poll it first")
        self._waiting.append(_Job(ticket, fd))
        self._dispatch()

    def poll(self, timeout: float) -> list[Result]:
        """Wait up to `timeout` seconds for results; those that are there, or none.

        Raises MachineError when there has been no worker at all for NO_WORKER_SECONDS.
        """
        until = time.monotonic() + timeout
        wait = 0.0
        while True:
            self._tend(wait)
            if self._results:
                results, self._results = self._results, []
                return results
            now = time.monotonic()
            self._raise_if_helpless(now)
            if now >= until:
                return []
            wait = max(min(until - now, self.patience), 0.0)

    # -- Tending the workers ------------------------------------------------------------------------

    def _tend(self, wait: float) -> None:
        """Take what comes within `wait` seconds, kill what hangs, replace what is missing, hand out what waits."""
        for key, _ in self._selector.select(wait):
            self._take_replies(key.data)
        now = time.monotonic()
        for worker in [w for w in self._workers if (w.queue or not w.ready) and now >= self._deadline(w)]:
            # It may have answered while nobody looked: only what is still missing now is late.
            self._take_replies(worker)
            if (
                worker in self._workers
                and (worker.queue or not worker.ready)
                and now >= self._deadline(worker)
            ):
                self._lose(worker, timed_out=True)
        self._undead = [process for process in self._undead if process.poll() is None]
        self._start_missing()
        self._dispatch()

    def _deadline(self, worker: _Worker) -> float:
        return worker.since + (self._limits.seconds if worker.ready else START_SECONDS)

    def _dispatch(self) -> None:
        """Hand waiting photos to workers: a suspect alone, the others evenly.

        While a suspect waits nothing else is handed out, so that a worker soon has empty hands for it.
        """
        while self._suspects:
            worker = min(self._workers, key=lambda w: len(w.queue), default=None)
            if worker is None or worker.queue:
                return
            if not self._send(worker, self._suspects.popleft()):
                return
        while self._waiting:
            open_to_more = [
                w for w in self._workers if len(w.queue) < self._depth and not any(j.suspect for j in w.queue)
            ]
            worker = min(open_to_more, key=lambda w: len(w.queue), default=None)
            if worker is None or not self._send(worker, self._waiting.popleft()):
                return

    def _send(self, worker: _Worker, job: _Job) -> bool:
        """Hand a photo to a worker; False when the machine has no room for it now, and it waits on."""
        try:
            worker.process.send(job.ticket, worker.sent % self._depth, job.descriptor)
        except OSError as error:
            self._fault = MachineError(f"cannot hand a photo to its decoder: {error.strerror}")
            (self._suspects if job.suspect else self._waiting).appendleft(job)
            return False
        self._heal()
        if not worker.queue:
            worker.since = time.monotonic()
        worker.sent += 1
        worker.queue.append(job)
        return True

    def _take_replies(self, worker: _Worker) -> None:
        """Take every reply that has come from a worker, and its death if that has come too."""
        while (message := worker.process.receive()) is not None:
            if not message or not self._take(worker, message):
                self._lose(worker, timed_out=False)
                return

    def _take(self, worker: _Worker, message: bytes) -> bool:
        """Turn a reply into a result; False when it makes no sense, as after a codec wrote where it should not."""
        now = time.monotonic()
        try:
            reply = orjson.loads(message)
            if reply.get("ready"):
                worker.ready, worker.since = True, now
                self._pause = _FIRST_PAUSE_SECONDS
                self._heal()
                return True
            job = worker.queue[0]
            if reply["ticket"] != job.ticket:
                return False
            result = self._result(worker, job, reply)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            return False
        worker.queue.popleft()
        worker.since = now
        self._finish(job, result)
        return True

    def _result(self, worker: _Worker, job: _Job, reply: dict[str, Any]) -> Result:
        if "unreadable" in reply:
            error = MachineError(reply["unreadable"])
            error.__cause__ = OSError(reply["errno"], os.strerror(reply["errno"]))
            return Unreadable(ticket=job.ticket, error=error)
        sha256, size = reply["sha256"], int(reply["bytes"])
        if "bug" in reply:
            reply["reason"] = "decoder_died"
            reply["message"] = f"a bug in pawsort, please report it:\n{reply['bug']}"
        if "reason" in reply:
            failure = PictureError(reply["reason"], reply["message"])
            return Undecodable(ticket=job.ticket, sha256=sha256, bytes=size, error=failure)
        slot = (worker.sent - len(worker.queue)) % self._depth
        whole = None if reply["whole"] is None else worker.process.whole(slot, *reply["whole"])
        return Decoded(
            ticket=job.ticket,
            sha256=sha256,
            bytes=size,
            header=_header(*reply["header"]),
            views=worker.process.views(slot),
            whole=whole,
            read_ms=reply["read_ms"],
            decode_ms=reply["decode_ms"],
        )

    def _finish(self, job: _Job, result: Result) -> None:
        os.close(job.descriptor)
        self._results.append(result)

    # -- Death and birth ----------------------------------------------------------------------------

    def _lose(self, worker: _Worker, *, timed_out: bool) -> None:
        """Kill a worker that died, hangs or talks nonsense, and decide about each photo it had."""
        in_hand = worker.process.begun > worker.sent - len(worker.queue)
        was_reading = worker.process.is_reading
        cause, noise = self._bury(worker)
        self.deaths += 1
        if not worker.ready:
            why = "is not ready after a minute" if timed_out else f"ended while starting ({cause})"
            self._start_failed(f"a decoder process {why}: {noise or 'it said nothing'}")
        elif worker.queue and not in_hand and worker.sent == len(worker.queue):
            self._start_failed(f"a decoder process ended before its first photo ({cause}): {noise}")
        elif worker.queue and in_hand:
            job = worker.queue.popleft()
            if timed_out and was_reading:
                message = f"reading it was not done after {self._limits.seconds:g} s"
                self._finish(job, Unreadable(ticket=job.ticket, error=MachineError(message)))
            elif not job.suspect:
                job.suspect = True
                self._suspects.append(job)
            elif timed_out:
                message = f"decoding it was not done after {self._limits.seconds:g} s, twice"
                self._give_up(job, PictureError("decoder_timed_out", message))
            else:
                message = f"decoding it killed two processes ({cause})"
                self._give_up(job, PictureError("decoder_died", message))
        for job in reversed(worker.queue):
            (self._suspects if job.suspect else self._waiting).appendleft(job)
        worker.queue.clear()

    def _give_up(self, job: _Job, error: PictureError) -> None:
        """Report a photo as undecodable, with the hash that its worker did not live to tell."""
        try:
            with open(job.descriptor, "rb", closefd=False) as file:
                file.seek(0)
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            size = os.fstat(job.descriptor).st_size
        except OSError as failure:
            fault = MachineError(f"reading failed: {failure.strerror}")
            self._finish(job, Unreadable(ticket=job.ticket, error=fault))
        else:
            self._finish(job, Undecodable(ticket=job.ticket, sha256=sha256, bytes=size, error=error))

    def _bury(self, worker: _Worker) -> tuple[str, str]:
        """Kill and reap a worker, and free what it held; why it ended, and its last words."""
        self._workers.remove(worker)
        self._selector.unregister(worker.process)
        ending = worker.process.end()
        if ending.undead is not None:
            self._undead.append(ending.undead)
        return ending.cause, ending.noise

    def _start_missing(self) -> None:
        while len(self._workers) < self._size and time.monotonic() >= self._start_at:
            try:
                process = DecoderProcess(self._render, self._limits, self._depth)
            except OSError as error:
                self._start_failed(f"cannot start a decoder process: {error.strerror or error}")
                return
            worker = _Worker(process, since=time.monotonic())
            self._workers.append(worker)
            self._selector.register(process, selectors.EVENT_READ, worker)

    def _heal(self) -> None:
        """Forget a fault once all workers are there again."""
        if self._fault is not None and [w.ready for w in self._workers] == [True] * self._size:
            self._fault = None

    def _start_failed(self, message: str) -> None:
        self._fault = MachineError(message)
        self._start_at = time.monotonic() + self._pause
        self._pause = min(self._pause * 2, _LONGEST_PAUSE_SECONDS)

    def _raise_if_helpless(self, now: float) -> None:
        if any(worker.ready for worker in self._workers) or self._fault is None:
            self._no_worker_since = None
        elif self._no_worker_since is None:
            self._no_worker_since = now
        elif now - self._no_worker_since >= NO_WORKER_SECONDS and not self._workers:
            raise self._fault
