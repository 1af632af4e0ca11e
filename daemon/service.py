"""THE LOOP: arrivals -> decode -> classify -> decide -> file -> record.

Everything happens on one thread but watching (watchdog's threads, which only leave hints) and decoding (processes that
may die). One photo's way through: `_take_in` opens it and hands it to a decoder, `_collect` takes the picture back,
`_decide` asks the model about all pictures that are there, `_file` moves and records them.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import numpy as np
import structlog

from daemon import recovery
from daemon.filing import BatchInterruptedError, Filed, Filing, Folders, Outcome, Verdict
from daemon.inbox import NETWORK_FILE_SYSTEMS, Inbox, file_system
from daemon.intake import Arrival, Intake, Ready, Why
from daemon.logs import readable
from daemon.status import Lock, Snapshot, StatusFile, skipped_folders
from pawsort import errors, ledger, registry
from pawsort.classifier import open_classifier
from pawsort.config import Settings
from pawsort.decision import Decision
from pawsort.decoders import Decoded, DecoderPool, Undecodable, Unreadable
from pawsort.image import Limits, Render

FAULT_RETRY = 1.0  # seconds between two tries while a fault of the machine lasts
STATUS_INTERVAL = 1.0  # seconds between two status files
LONGEST_WAIT = 1.0  # seconds; the loop turns at least this often, to look after its watch and its status
STOP_GRACE = 5.0  # seconds that photos in the decoders have when the service is asked to stop
MOST_TAKEN_IN = (
    256  # arrivals looked at in one turn, so that a flood of unfinished files cannot hold the loop up
)

log = structlog.get_logger()


@dataclass(kw_only=True)
class Tally:
    """What happened in this run."""

    sorted: dict[str, int] = field(default_factory=dict)
    review: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    left: dict[str, int] = field(default_factory=dict)  # files left in the inbox, by reason
    problems: dict[str, str] = field(default_factory=dict)  # faults of the machine that lasted to the end

    @property
    def total(self) -> int:
        """All photos filed."""
        return sum(self.sorted.values()) + self.review + sum(self.rejected.values())


class Service:
    """The daemon. Make one, call `run`.

    `once`: sort what is there and return, instead of watching. `dry_run`: decide, but move and record nothing.
    `on_filed` is called with every batch that was filed (a progress bar, say).
    """

    def __init__(
        self,
        settings: Settings,
        *,
        once: bool = False,
        dry_run: bool = False,
        on_filed: Callable[[Sequence[Filed]], None] = lambda _: None,
    ) -> None:
        self._settings = settings
        self._once = once or dry_run
        self._dry_run = dry_run
        self._on_filed = on_filed
        self._stopping: str | None = None
        self._stop_by = float("inf")
        self._in_flight: dict[int, Ready] = {}
        self._paths_in_flight: set[Path] = set()
        self._next_ticket = 0
        self._held: list[Verdict] = []  # decided, but the machine would not let us file them
        self._retry_at = 0.0
        self._problems: dict[str, str] = {}
        self._tally = Tally()
        self._last_photo: str | None = None
        self._started = time.time()
        self._next_status = 0.0

    def run(self) -> Tally:
        """Work until told to stop (SIGTERM, SIGINT), or until all is sorted when running once.

        Raises MachineError, ModelError or LedgerError when it cannot start, UncertainError when it must not go on.
        """
        with ExitStack() as stack:
            self._start_up(stack)
            while not self._is_done():
                self._wait()
                self._look_after()
                self._take_in()
                pictures, verdicts = self._collect()
                verdicts += self._decide(pictures)
                self._file(verdicts)
            self._shut_down()
        return self._tally

    # A life in three verbs: start up, the loop above, shut down

    def _start_up(self, stack: ExitStack) -> None:
        settings = self._settings
        for folder in (settings.inbox, settings.sorted, settings.review, settings.rejected, settings.state):
            folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(Lock(settings.state))
        self._wakeup = stack.enter_context(_pipe())
        stack.enter_context(_signals(self._on_signal, wakeup=self._wakeup[1]))

        self._ledger = stack.enter_context(ledger.Ledger(settings.state / ledger.FILE))
        if not self._dry_run:
            self._recover()
        folder = registry.Registry(settings.models).current()
        self._classifier = open_classifier(
            folder, kind=settings.engine, threshold=settings.threshold, cache=settings.state / "cache"
        )
        model = self._classifier.bundle
        self._decoders = stack.enter_context(
            DecoderPool(
                settings.decoders,
                Render(size=model.size, views=model.views),
                Limits(**settings.limits.model_dump()),
            )
        )
        folders = Folders(sorted=settings.sorted, review=settings.review, rejected=settings.rejected)
        self._filing: Filing | DryRun = (
            DryRun(folders) if self._dry_run else Filing(settings.inbox, folders, self._ledger)
        )
        self._intake = Intake(
            settle_s=settings.settle_s,
            patience_s=settings.patience_s,
            leases=file_system(settings.inbox) not in NETWORK_FILE_SYSTEMS,
        )
        self._inbox = Inbox(
            settings.inbox,
            recursive=settings.recursive,
            rescan_s=settings.rescan_s,
            watch=settings.watch,
            skip=skipped_folders(settings),
            wake=self._wake,
        )
        if self._once:
            self._inbox.want_rescan("start-up")
        else:
            self._inbox.start()
            stack.callback(self._inbox.stop)
        self._status = StatusFile(settings.state)
        log.info(
            "ready",
            model=model.name,
            engine=self._classifier.engine.name,
            labels=list(model.labels),
            threshold=self._classifier.threshold,
            inbox=readable(settings.inbox),
            watch=None if self._once else self._inbox.health.method,
            pid=os.getpid(),
        )

    def _recover(self) -> None:
        recovered = recovery.recover(self._ledger)
        for what in ("finished", "taken_back", "vanished"):
            for row in getattr(recovered, what):
                log.warning(
                    "recovered",
                    what=what,
                    id=row.id,
                    file=readable(row.source),
                    destination=readable(row.destination),
                    sha256=row.sha256,
                )

    def _shut_down(self) -> None:
        with suppress(OSError, errors.LedgerError):
            # What stays owed is in state "intent": the next start finishes it.
            self._filing.settle_debts()
        self._tally.seconds = time.monotonic() - self._tally.started
        self._tally.left = {why.value: count for why, count in self._intake.waiting().items() if count}
        if self._in_flight or self._held:
            self._tally.left["not finished"] = len(self._in_flight) + len(self._held)
        self._tally.problems = dict(self._problems)
        self._write_status(ready=False)
        log.info("stopped", reason=self._stopping or "all sorted", filed=self._tally.total)

    # The steps of one turn

    def _is_done(self) -> bool:
        idle = not self._in_flight and not self._held
        if self._stopping is not None:
            return idle or time.monotonic() >= self._stop_by
        if not self._once:
            return False
        settling = self._intake.waiting()[Why.SETTLING]
        if self._held or "filing" in self._problems:
            return True
        return idle and self._inbox.exhausted and not settling

    def _wait(self) -> None:
        """Sleep until something is to be done: a picture decoded, an arrival, a signal, or a time that has come."""
        timeout = self._timeout()
        poller = select.poll()
        for descriptor in (self._wakeup[0], *self._decoders.filenos):
            poller.register(descriptor, select.POLLIN)
        poller.poll(timeout * 1e3)
        with suppress(BlockingIOError):
            while os.read(self._wakeup[0], 4096):
                pass

    def _timeout(self) -> float:
        now = time.monotonic()
        if self._held:
            return max(min(self._retry_at - now, LONGEST_WAIT), 0.0)
        if self._stopping is None and self._decoders.free and not self._inbox.exhausted:
            return 0.0
        times = [now + LONGEST_WAIT, now + self._inbox.next_rescan_in()]
        if (due := self._intake.next_due()) is not None and self._decoders.free:
            times.append(due)
        return max(min(times) - now, 0.0)

    def _look_after(self) -> None:
        """See to the watch, say what changed, write the status."""
        if not self._once:
            try:
                self._inbox.check_health()
            except OSError as error:
                self._set_problem("watch", f"{readable(self._settings.inbox)} cannot be watched: {error}")
            else:
                self._set_problem("watch", None)
            self._set_problem("inbox", self._inbox.health.problem)
        if self._intake.forgot_some and self._inbox.exhausted:
            self._intake.forgot_some = False
            self._inbox.want_rescan("more files wait than are remembered")
        unreadable = self._intake.waiting()[Why.FAULT]
        longest = self._intake.longest_waiting()
        self._set_problem(
            "files",
            f"{unreadable} not given by the machine: {longest[1]}" if unreadable and longest else None,
        )
        if time.monotonic() >= self._next_status:
            self._write_status(ready=True)

    def _take_in(self) -> None:
        """Hand finished files to the decoders, as long as they have room."""
        if self._stopping is not None or self._held:
            return
        due = iter(self._intake.due())
        for _ in range(MOST_TAKEN_IN):
            if not self._decoders.free:
                return
            arrival = next(due, None) or self._inbox.next(self._is_known)
            if arrival is None:
                return
            if arrival.path in self._paths_in_flight:
                continue
            found = self._intake.examine(arrival)
            if isinstance(found, Ready):
                self._submit(found)

    def _submit(self, ready: Ready) -> None:
        ticket = self._next_ticket
        self._next_ticket += 1
        self._in_flight[ticket] = ready
        self._paths_in_flight.add(ready.path)
        self._decoders.submit(ticket, ready.descriptor)

    def _collect(self) -> tuple[list[tuple[Ready, Decoded]], list[Verdict]]:
        """What the decoders have finished: pictures to be classified, and verdicts about what is no picture."""
        pictures, verdicts = [], []
        try:
            results = self._decoders.poll(0.0)
        except errors.MachineError as error:
            self._set_problem("decoders", str(error))
            return [], []
        self._set_problem("decoders", str(self._decoders.fault) if self._decoders.fault else None)
        for result in results:
            ready = self._in_flight[result.ticket]
            if isinstance(result, Decoded):
                pictures.append((ready, result))
            elif isinstance(result, Unreadable):
                self._intake.wait(_again(ready), Why.FAULT, ready.identity, str(result.error))
                self._land(ready.path, result.ticket)
            elif (verdict := self._reject(ready, result)) is not None:
                verdicts.append(verdict)
                self._in_flight.pop(result.ticket)
            else:
                self._land(ready.path, result.ticket)
        return pictures, verdicts

    def _reject(self, ready: Ready, result: Undecodable) -> Verdict | None:
        """The verdict about a file that is no picture; None when it may yet become one."""
        error = result.error
        if error.reason in errors.PASSING_REASONS and self._intake.unfinished(ready, str(error)) is not None:
            return None
        return Verdict(
            path=ready.path,
            identity=ready.identity,
            noticed_at=ready.noticed_at,
            event="rejected",
            reason=f"{error.reason}: {error}",
            sha256=result.sha256,
        )

    def _decide(self, pictures: list[tuple[Ready, Decoded]]) -> list[Verdict]:
        """Ask the model about all pictures that are there, a batch at a time."""
        verdicts = []
        for start in range(0, len(pictures), self._settings.batch_size):
            batch = pictures[start : start + self._settings.batch_size]
            began = time.perf_counter()
            decisions = self._classifier.classify(np.stack([decoded.views for _, decoded in batch]))
            infer_ms = (time.perf_counter() - began) * 1e3 / len(batch)
            for (ready, decoded), decision in zip(batch, decisions, strict=True):
                verdicts.append(self._verdict(ready, decoded, decision, infer_ms))
                self._in_flight.pop(decoded.ticket)
        return verdicts

    def _verdict(self, ready: Ready, decoded: Decoded, decision: Decision, infer_ms: float) -> Verdict:
        model = self._classifier.bundle
        return Verdict(
            path=ready.path,
            identity=ready.identity,
            noticed_at=ready.noticed_at,
            event="review" if decision.label is None else "sorted",
            label=decision.label,
            best=decision.best,
            confidence=decision.confidence,
            probabilities=dict(zip(model.labels, decision.probabilities, strict=True)),
            model=model.name,
            reason=decision.reason,
            sha256=decoded.sha256,
            width=decoded.header.width,
            height=decoded.header.height,
            decode_ms=decoded.decode_ms,
            infer_ms=infer_ms,
        )

    def _file(self, verdicts: list[Verdict]) -> None:
        """File what is decided. What the machine does not let us file is held, and tried again."""
        if self._held:
            self._held += verdicts
            if time.monotonic() < self._retry_at:
                return
            verdicts, self._held = self._held, []
        if not verdicts:
            return
        try:
            outcome = self._filing.file(verdicts)
        except (errors.LedgerError, BatchInterruptedError) as error:
            filed = error.filed if isinstance(error, BatchInterruptedError) else []
            self._record(filed)
            done = {id(photo.verdict) for photo in filed}
            self._held = [verdict for verdict in verdicts if id(verdict) not in done]
            self._retry_at = time.monotonic() + FAULT_RETRY
            self._set_problem("filing", str(error))
            return
        self._set_problem("filing", None)
        self._record(outcome.filed)
        for verdict in outcome.changed:
            # Gone, or another file now: in that case it is an arrival like any other.
            self._land(verdict.path)
            self._inbox.hint(verdict.path, finished=False)
        for verdict, refusal in outcome.refused:
            self._land(verdict.path)
            arrival = Arrival(path=verdict.path, noticed_at=verdict.noticed_at)
            self._intake.wait(
                arrival, Why.FAULT, verdict.identity, f"{readable(verdict.path)}: {refusal.strerror}"
            )

    def _record(self, filed: Sequence[Filed]) -> None:
        """One line a photo, after the move."""
        for photo in filed:
            verdict = photo.verdict
            self._land(verdict.path)
            line = {
                "id": photo.id,
                "file": readable(verdict.path.name),
                "destination": readable(photo.destination),
                "label": verdict.label,
                "confidence": verdict.confidence,
                "probabilities": verdict.probabilities,
                "model": verdict.model,
                "sha256": verdict.sha256,
                "bytes": verdict.identity.bytes,
                "width": verdict.width,
                "height": verdict.height,
                "decode_ms": verdict.decode_ms,
                "infer_ms": verdict.infer_ms,
                "latency_ms": photo.latency_ms,
            }
            if verdict.reason is not None:
                line["reason"] = verdict.reason
            if not self._dry_run:
                log.info(verdict.event, **line)
            if verdict.event == "sorted" and verdict.label is not None:
                self._tally.sorted[verdict.label] = self._tally.sorted.get(verdict.label, 0) + 1
            elif verdict.event == "review":
                self._tally.review += 1
            else:
                reason = (verdict.reason or "").partition(":")[0]
                self._tally.rejected[reason] = self._tally.rejected.get(reason, 0) + 1
            self._last_photo = f"{readable(verdict.path.name)}: {verdict.label or verdict.event}"
        if filed:
            self._on_filed(filed)

    # Small things

    def _is_known(self, path: Path) -> bool:
        return path in self._paths_in_flight or self._intake.holds(path)

    def _land(self, path: Path, ticket: int | None = None) -> None:
        """This path is no longer on its way through the daemon."""
        if ticket is not None:
            self._in_flight.pop(ticket)
        self._paths_in_flight.discard(path)

    def _set_problem(self, key: str, problem: str | None) -> None:
        """Remember what is wrong; one log line when it begins and one when it is over, however long it lasts."""
        if problem is None:
            if self._problems.pop(key, None) is not None:
                log.warning("recovered", problem=key)
                self._next_status = 0.0
        else:
            if key not in self._problems:
                log.error("degraded", problem=key, reason=problem)
                self._next_status = 0.0
            self._problems[key] = problem

    def _write_status(self, *, ready: bool) -> None:
        now = time.time()
        self._next_status = time.monotonic() + STATUS_INTERVAL
        longest = self._intake.longest_waiting()
        last_rescan, reason = self._inbox.last_rescan or (None, None)
        health = self._inbox.health
        snapshot = Snapshot(
            pid=os.getpid(),
            started=self._started,
            written=now,
            ready=ready,
            model=self._classifier.bundle.name,
            engine=self._classifier.engine.name,
            watch=f"{health.method} ({health.why})",
            in_flight=len(self._in_flight) + len(self._held),
            waiting={why.value: count for why, count in self._intake.waiting().items() if count},
            longest_waiting=f"{readable(longest[0])}: {longest[1]}" if longest else None,
            recovered_by_rescan=self._inbox.recovered_by_rescan,
            last_rescan=last_rescan,
            last_rescan_reason=reason,
            last_photo=self._last_photo,
            problems=dict(self._problems),
        )
        try:
            self._status.write(snapshot)
        except OSError as error:
            self._set_problem("status", f"the status file cannot be written: {error}")
        else:
            self._set_problem("status", None)

    def _wake(self) -> None:
        """Make `_wait` return. May be called from any thread."""
        with suppress(BlockingIOError):  # the pipe is full: the loop is about to wake anyway
            os.write(self._wakeup[1], b".")

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._stopping is None:
            self._stopping = signal.Signals(number).name
            self._stop_by = time.monotonic() + STOP_GRACE


class DryRun:
    """Stands in for Filing when nothing may be moved: answers where each photo would go."""

    def __init__(self, folders: Folders) -> None:
        self._folders = folders

    def file(self, verdicts: Sequence[Verdict]) -> Outcome:
        """Where the photos of a batch would go."""
        filed = [
            Filed(
                id=0,
                verdict=verdict,
                destination=self._folders.of(verdict.event, verdict.label) / verdict.path.name,
                latency_ms=(time.monotonic() - verdict.noticed_at) * 1e3,
            )
            for verdict in verdicts
        ]
        return Outcome(filed=filed, changed=[], refused=[])

    def settle_debts(self) -> None:
        """Nothing is ever owed."""


def _again(ready: Ready) -> Arrival:
    return Arrival(path=ready.path, noticed_at=ready.noticed_at)


@contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    """A non-blocking pipe, by which signals and other threads wake the loop."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        yield reader, writer
    finally:
        os.close(reader)
        os.close(writer)


@contextmanager
def _signals(handler: Callable[[int, FrameType | None], None], *, wakeup: int) -> Iterator[None]:
    """Install the handlers and put the old ones back."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    # A writer that opens a file on which a read lease is just being tried sends us this; its default is to kill.
    before[signal.SIGIO] = signal.signal(signal.SIGIO, signal.SIG_IGN)
    old_wakeup = signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(old_wakeup)
        for number, old in before.items():
            signal.signal(number, old)
