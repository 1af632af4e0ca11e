"""THE LOOP: arrivals -> decode -> classify -> decide -> file -> record.

Everything happens on one thread but watching (watchdog's threads, which only leave hints) and decoding (processes that
may die). One photo's way through: `_take_in` opens it and hands it to a decoder, `_collect` takes the picture back,
`_decide` asks the model about all pictures that are there, `_file` moves and records them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from daemon import journal, recovery, returning
from daemon.decoding import Decoding
from daemon.dry_run import DryRun
from daemon.filing import BatchInterruptedError, Filed, Filing, Folders, Verdict
from daemon.inbox import NETWORK_FILE_SYSTEMS, Inbox, file_system
from daemon.intake import Arrival, Intake, Ready, Why
from daemon.judging import Judge, Picture
from daemon.logs import readable
from daemon.mounts import Mounts
from daemon.notify import Notifier
from daemon.serving import ServingModel
from daemon.signals import Waker
from daemon.status import Lock, Problems, Snapshot, StatusFile, skipped_folders
from pawsort import errors, ledger
from pawsort.classifier import Classifier
from pawsort.config import Settings
from pawsort.decoders import Decoded, Unreadable

if TYPE_CHECKING:
    from daemon.metrics import Metrics

FAULT_RETRY = 1.0  # seconds between two tries while a fault of the machine lasts
STATUS_INTERVAL = 1.0  # seconds between two status files
LONGEST_SLEEP = 1.0  # seconds; the loop turns at least this often, to look after its watch and its status
STOP_GRACE = 5.0  # seconds that photos in the decoders have when the service is asked to stop
MOST_TAKEN_IN = (
    256  # arrivals looked at in one turn, so that a flood of unfinished files cannot hold the loop up
)

log = structlog.get_logger()


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
        self._tally = journal.Tally()
        self._problems = Problems()
        self._paths_in_flight: set[Path] = set()  # everything between intake and its place
        self._held: list[Verdict] = []  # decided, but the machine would not let us file them
        self._retry_at = 0.0
        self._next_status = 0.0
        self._stop_by: float | None = None
        self._started = time.time()
        self._successor: Classifier | None = None  # a newer model that has not taken over yet
        self._notifier = Notifier()
        self._metrics: Metrics | None = None

    def run(self) -> journal.Tally:
        """Work until told to stop (SIGTERM, SIGINT), or until all is sorted when running once.

        Raises MachineError, ModelError or LedgerError when it cannot start, UncertainError when it must not go on.
        """
        with ExitStack() as stack:
            self._start_up(stack)
            while not self._is_done():
                self._wait()
                self._look_after()
                self._swap_model()
                pictures, verdicts = self._collect()
                self._take_in()  # before the model is asked, so that the decoders work meanwhile
                verdicts += self._decide(pictures)
                self._file(verdicts)
            self._shut_down()
        return self._tally

    # Around the loop: start up, shut down

    def _start_up(self, stack: ExitStack) -> None:
        settings = self._settings
        settings.state.mkdir(parents=True, exist_ok=True)
        stack.enter_context(Lock(settings.state))
        self._mounts = Mounts(settings)
        self._mounts.check()  # before folders are made: not on a bare mount point
        for folder in (settings.inbox, settings.sorted, settings.review, settings.rejected):
            folder.mkdir(parents=True, exist_ok=True)
        self._mounts.remember()
        self._waker = Waker()
        stack.callback(self._waker.close)
        stack.enter_context(self._waker.listening())
        self._status = StatusFile(settings.state)

        book = stack.enter_context(ledger.Ledger(settings.state / ledger.FILE))
        if not self._dry_run:
            returning.recover(book)
            journal.write_recovered(recovery.recover(book))
        self._model = ServingModel(settings)
        self._judge = Judge(
            self._model.classifier, book, duplicates=settings.duplicates, batch_size=settings.batch_size
        )
        self._decoding = stack.enter_context(Decoding(settings, self._model.classifier.bundle))
        folders = Folders(sorted=settings.sorted, review=settings.review, rejected=settings.rejected)
        self._filing = DryRun(folders) if self._dry_run else Filing(settings.inbox, folders, book)
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
            wake=self._waker.wake,
        )
        if self._once:
            self._inbox.want_rescan("start-up")
        else:
            self._inbox.start()
            stack.callback(self._inbox.stop)
        if settings.metrics is not None:
            # Imported here: most go without, and it costs a tenth of the start.
            from daemon.metrics import Metrics

            self._metrics = stack.enter_context(Metrics(settings.metrics))
        watch = None if self._once else self._inbox.health.method
        log.info("ready", **self._model.facts(), inbox=readable(settings.inbox), watch=watch, pid=os.getpid())
        self._notifier.ready(self._snapshot(ready=True).in_a_line())

    def _shut_down(self) -> None:
        with suppress(OSError, errors.LedgerError):
            # What stays owed is in state "intent": the next start finishes it.
            self._filing.settle_debts()
        for why, count in self._intake.waiting().items():
            if count:
                self._tally.leave(why.value, count)
        if len(self._decoding) or self._held:
            self._tally.leave("not finished", len(self._decoding) + len(self._held))
        self._problems.set("folders", self._inbox.unreadable)  # of a scan that ended in the last turn
        self._tally.seconds = time.monotonic() - self._tally.started
        self._tally.problems = dict(self._problems.lasting)
        self._tell(ready=False)
        log.info("stopped", reason=self._waker.stop_signal or "all sorted", filed=self._tally.total)

    # The steps of one turn

    def _is_done(self) -> bool:
        idle = not len(self._decoding) and not self._held
        if self._waker.stop_signal is not None:
            if self._stop_by is None:
                self._stop_by = time.monotonic() + STOP_GRACE
                self._notifier.stopping()
            return idle or time.monotonic() >= self._stop_by
        if not self._once:
            return False
        if self._problems.has("filing") or self._problems.has("mounts"):
            return True
        return idle and self._inbox.exhausted and not self._intake.waiting()[Why.SETTLING]

    def _wait(self) -> None:
        """Sleep until something is to be done: a picture decoded, an arrival, a signal, or a time that has come."""
        now = time.monotonic()
        until = [now + LONGEST_SLEEP, now + self._decoding.patience]
        if self._held:
            until.append(self._retry_at)
        elif self._takes_in and self._decoding.free:
            until.append(now + self._inbox.next_rescan_in() if self._inbox.exhausted else now)
            if (due := self._intake.next_due()) is not None:
                until.append(due)
        self._waker.sleep(max(min(until) - now, 0.0), self._decoding.filenos)

    def _look_after(self) -> None:
        """See to the watch, say what changed, write the status, give a sign of life."""
        if not self._decoding.seem_stuck():
            self._notifier.sign_of_life()
        if not self._once:
            try:
                self._inbox.check_health()
            except OSError as error:
                self._problems.set("watch", f"{readable(self._settings.inbox)} cannot be watched: {error}")
            else:
                self._problems.set("watch", None)
            self._problems.set("inbox", self._inbox.health.problem)
        if self._intake.forgot_some and self._inbox.exhausted:
            self._intake.forgot_some = False
            self._inbox.want_rescan("more files wait than are remembered")
        self._problems.set("files", self._intake.fault())
        self._problems.set("folders", self._inbox.unreadable)
        if self._waker.reload_asked or time.monotonic() >= self._next_status:
            self._look_for_a_newer_model()
            self._problems.set("mounts", self._mounts.problem())
        if self._problems.changed or time.monotonic() >= self._next_status:
            self._tell(ready=True)

    def _look_for_a_newer_model(self) -> None:
        asked, self._waker.reload_asked = self._waker.reload_asked, False
        if asked:
            self._notifier.reloading()
        self._successor = self._model.newer(asked=asked) or self._successor
        self._problems.set("model", self._model.problem)
        if asked:
            self._notifier.ready(self._snapshot(ready=True).in_a_line())

    def _swap_model(self) -> None:
        """Between two batches, let the newer model take over, if there is one.

        One that wants other pictures has to wait until those under way were classified by the old one.
        """
        successor = self._successor
        if successor is None or not self._decoding.adapt_to(successor.bundle):
            return
        self._successor = None
        self._model.take_over(successor)
        self._judge.classifier = successor

    def _take_in(self) -> None:
        """Hand finished files to the decoders, as long as they have room."""
        if not self._takes_in:
            return
        due = iter(self._intake.due())
        for _ in range(MOST_TAKEN_IN):
            if not self._decoding.free:
                return
            arrival = next(due, None) or self._inbox.next(self._is_known)
            if arrival is None:
                return
            if arrival.path in self._paths_in_flight:
                continue
            found = self._intake.examine(arrival)
            if isinstance(found, Ready):
                self._paths_in_flight.add(found.path)
                self._decoding.submit(found)

    def _collect(self) -> tuple[list[Picture], list[Verdict]]:
        """What the decoders have finished: pictures to be classified, and verdicts about what is no picture."""
        pictures: list[Picture] = []
        verdicts: list[Verdict] = []
        try:
            results = self._decoding.collect()
        except errors.MachineError as error:
            self._problems.set("decoders", str(error))
            return pictures, verdicts
        self._problems.set("decoders", self._decoding.fault)
        for ready, result in results:
            if isinstance(result, Decoded):
                pictures.append(Picture(ready=ready, decoded=result))
            elif isinstance(result, Unreadable):
                self._wait_for_machine(ready, str(result.error))
            elif (
                result.error.reason in errors.PASSING_REASONS
                and self._intake.unfinished(ready, str(result.error)) is not None
            ):
                self._paths_in_flight.discard(ready.path)
            else:
                verdicts.append(self._judge.reject(ready, result))
        return pictures, verdicts

    def _decide(self, pictures: list[Picture]) -> list[Verdict]:
        """Ask the model about all pictures that are there."""
        if not pictures:
            return []
        try:
            pictures, skipped = self._judge.split_duplicates(pictures)
            verdicts = self._judge.decide(pictures)
        except errors.LedgerError as error:
            for picture in pictures:
                self._wait_for_machine(picture.ready, str(error))
            return []
        for picture, twin in skipped:
            name, sha256 = readable(picture.ready.path.name), picture.decoded.sha256
            log.info("skipped", file=name, sha256=sha256, duplicate_of=readable(twin))
            self._paths_in_flight.discard(picture.ready.path)
            self._intake.leave_alone(picture.ready)
            self._tally.leave("duplicates")
        return verdicts

    def _file(self, verdicts: list[Verdict]) -> None:
        """File what is decided. What the machine does not let us file is held, and tried again."""
        if self._problems.has("filing"):
            self._held += verdicts
            if time.monotonic() < self._retry_at:
                return
            verdicts, self._held = self._held, []
        elif not verdicts:
            return
        try:
            self._mounts.check()
            outcome = self._filing.file(verdicts)
        except (errors.LedgerError, errors.MachineError) as error:
            filed = error.filed if isinstance(error, BatchInterruptedError) else []
            self._record(filed)
            done = {id(photo.verdict) for photo in filed}
            self._held = [verdict for verdict in verdicts if id(verdict) not in done]
            self._retry_at = time.monotonic() + FAULT_RETRY
            self._problems.set("filing", str(error))
            return
        self._problems.set("filing", None)
        self._record(outcome.filed)
        for verdict in outcome.changed:
            # Gone, or another file now: in that case it is an arrival like any other.
            self._paths_in_flight.discard(verdict.path)
            self._inbox.hint(verdict.path, finished=False)
        for verdict, refusal in outcome.refused:
            self._wait_for_machine(verdict, f"{readable(verdict.path)}: {refusal.strerror}")

    def _record(self, filed: Sequence[Filed]) -> None:
        """One line a photo, after the move."""
        for photo in filed:
            self._paths_in_flight.discard(photo.verdict.path)
            self._tally.add(photo)
        if not self._dry_run:
            journal.write(filed)
        if filed:
            self._on_filed(filed)
        if self._metrics is not None:
            self._metrics.count(filed)

    # Small things

    @property
    def _takes_in(self) -> bool:
        """Whether photos are begun at all now."""
        held_up = self._held or self._successor is not None or self._problems.has("mounts")
        return self._waker.stop_signal is None and not held_up

    def _wait_for_machine(self, photo: Ready | Verdict, detail: str) -> None:
        """Try a photo again later, that the machine and not the photo stopped."""
        self._paths_in_flight.discard(photo.path)
        arrival = Arrival(path=photo.path, noticed_at=photo.noticed_at)
        self._intake.wait(arrival, Why.FAULT, photo.identity, detail)

    def _is_known(self, path: Path) -> bool:
        return path in self._paths_in_flight or self._intake.holds(path)

    def _snapshot(self, *, ready: bool) -> Snapshot:
        longest = self._intake.longest_waiting()
        last_rescan, reason = self._inbox.last_rescan or (None, None)
        health = self._inbox.health
        return Snapshot(
            pid=os.getpid(),
            started=self._started,
            written=time.time(),
            ready=ready,
            model=self._judge.classifier.bundle.name,
            engine=self._judge.classifier.engine.name,
            watch=f"{health.method} ({health.why})",
            filed=self._tally.total,
            in_flight=len(self._decoding) + len(self._held),
            waiting={why.value: count for why, count in self._intake.waiting().items() if count},
            longest_waiting=f"{readable(longest[0])}: {longest[1]}" if longest else None,
            recovered_by_rescan=self._inbox.recovered_by_rescan,
            last_rescan=last_rescan,
            last_rescan_reason=reason,
            last_photo=self._tally.last_photo,
            problems=dict(self._problems.lasting),
        )

    def _tell(self, *, ready: bool) -> None:
        """Say how things stand: status file, service manager, figures."""
        self._next_status = time.monotonic() + STATUS_INTERVAL
        self._problems.changed = False
        snapshot = self._snapshot(ready=ready)
        if ready:
            self._notifier.status(snapshot.in_a_line())
        if self._metrics is not None:
            self._metrics.turn(snapshot)
        try:
            self._status.write(snapshot)
        except OSError as error:
            self._problems.set("status", f"the status file cannot be written: {error}")
        else:
            self._problems.set("status", None)
