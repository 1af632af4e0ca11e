"""The durable move that never overwrites and never loses: intent, move, sync, completion, one batch at a time.

What a batch costs: one commit of the intents, a rename a photo, one fsync of each folder touched, one commit that
completes the rows. A crash anywhere in between leaves rows in state "intent", which daemon.recovery finishes or
takes back at the next start.
"""

from __future__ import annotations

import errno
import itertools
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from daemon import moving
from daemon.intake import Identity
from pawsort import errors
from pawsort.ledger import Entry, Event, Ledger

DUPLICATES = "duplicates"  # folder inside review, for `duplicates: folder`
REASON_SUFFIX = ".reason.txt"  # of the note beside a rejected file
LONGEST_NAME = 255  # bytes, on every Linux file system that matters
REMEMBERED_NAMES = 4096  # names whose last number is remembered, so that the 1,000th IMG.jpg need not try 999

# Faults that a photo, the folder it lies in, or the one it goes to, can have alone. All others concern every photo.
_OF_ONE_PHOTO = {errno.EPERM, errno.EACCES, errno.EBUSY, errno.ETXTBSY, errno.ENOTDIR}
# Faults that say nothing about the disk: too many open files, no memory.
_OF_THIS_PROCESS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A photo about which everything is decided: where it goes and what will be recorded of it."""

    path: Path
    identity: Identity
    noticed_at: float  # monotonic seconds
    event: Event
    label: str | None = None
    best: str | None = None
    confidence: float | None = None
    probabilities: Mapping[str, float] | None = None
    model: str | None = None
    reason: str | None = None
    sha256: str | None = None
    width: int | None = None
    height: int | None = None
    decode_ms: float | None = None
    infer_ms: float | None = None
    is_duplicate: bool = False


@dataclass(frozen=True, kw_only=True)
class Filed:
    """A photo in its place, with the id of its row."""

    id: int
    verdict: Verdict
    destination: Path
    latency_ms: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a batch: filed, changed under our hands (to be looked at anew), or refused by the machine."""

    filed: list[Filed]
    changed: list[Verdict]
    refused: list[tuple[Verdict, OSError]]


@dataclass(frozen=True, kw_only=True)
class Folders:
    """Where photos go."""

    sorted: Path
    review: Path
    rejected: Path

    def of(self, verdict: Verdict) -> Path:
        """The folder for a photo of this verdict."""
        if verdict.event == "sorted":
            if verdict.label is None:
                message = f"{verdict.path}: a sorted photo has a label"
                raise ValueError(message)
            return self.sorted / verdict.label
        if verdict.event == "rejected":
            return self.rejected
        return self.review / DUPLICATES if verdict.is_duplicate else self.review


class Filing:
    """Files batches of photos. The only writer of rows, together with daemon.recovery at start-up."""

    def __init__(
        self,
        inbox: Path,
        folders: Folders,
        ledger: Ledger,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inbox = inbox
        self._folders = folders
        self._ledger = ledger
        self._monotonic = monotonic
        self._numbers: OrderedDict[tuple[Path, str], int] = OrderedDict()
        self._owed_syncs: set[Path] = set()
        self._owed_notes: list[tuple[Path, str]] = []
        self._owed_finish: list[tuple[int, float | None]] = []
        self._owed_forget: list[int] = []

    def file(self, verdicts: Sequence[Verdict]) -> Outcome:
        """File a batch.

        Raises LedgerError when nothing could be begun, and BatchInterruptedError when a fault that concerns every
        photo (disk full, read-only, the ledger cannot be written) came up on the way: photos not among its `filed`
        are where they were and may be given again. Raises UncertainError when only a recovery can say.
        """
        try:
            self.settle_debts()
        except OSError as error:
            raise BatchInterruptedError(str(error), []) from error
        chosen: set[Path] = set()
        entries = [self._entry(verdict, chosen) for verdict in verdicts]
        ids = self._ledger.begin(entries)

        filed: list[Filed] = []
        changed: list[Verdict] = []
        refused: list[tuple[Verdict, OSError]] = []
        unmoved = dict(zip(ids, verdicts, strict=True))
        touched: set[Path] = set()
        fault: OSError | errors.LedgerError | None = None
        for row_id, verdict, entry in zip(ids, verdicts, entries, strict=True):
            try:
                destination = self._move(row_id, verdict, entry.destination, touched)
            except moving.SourceChangedError:
                changed.append(verdict)
                continue
            except (OSError, errors.LedgerError) as error:
                if isinstance(error, OSError) and self._concerns_one_photo(error, entry.destination.parent):
                    refused.append((verdict, error))
                    continue
                fault = error
                break
            del unmoved[row_id]
            if verdict.event == "rejected" and verdict.reason is not None:
                self._owed_notes.append((destination, verdict.reason))
            latency_ms = (self._monotonic() - verdict.noticed_at) * 1e3
            filed.append(Filed(id=row_id, verdict=verdict, destination=destination, latency_ms=latency_ms))

        self._owed_syncs |= touched
        self._owed_finish += [(photo.id, photo.latency_ms) for photo in filed]
        self._owed_forget += unmoved
        try:
            # Also after a fault: the ledger is to be true while it lasts, and may well be on another disk.
            self.settle_debts()
        except (OSError, errors.LedgerError) as error:
            fault = fault or error
        if fault is not None:
            raise BatchInterruptedError(str(fault), filed) from fault
        return Outcome(filed=filed, changed=changed, refused=refused)

    def settle_debts(self) -> None:
        """Write what is owed: names to make durable, notes beside rejected files, rows to complete, rows to forget.

        Raises OSError or LedgerError; what could not be written stays owed. Raises UncertainError when a sync failed.
        """
        for folder in tuple(self._owed_syncs):
            _sync(folder)
            self._owed_syncs.remove(folder)
        while self._owed_notes:
            write_reason(*self._owed_notes[0])
            self._owed_notes.pop(0)
        if self._owed_finish:
            self._ledger.finish(self._owed_finish)
            self._owed_finish = []
        if self._owed_forget:
            self._ledger.forget(self._owed_forget)
            self._owed_forget = []

    def _move(self, row_id: int, verdict: Verdict, destination: Path, touched: set[Path]) -> Path:
        folder = destination.parent
        if not folder.is_dir():
            # Only the last part of the path: were its parent made as well, photos would end up under a mount point
            # whose file system is missing.
            try:
                folder.mkdir(exist_ok=True)
            except FileExistsError as error:
                raise NotADirectoryError(
                    errno.ENOTDIR, f"{folder} is in its way and no folder; move it"
                ) from error
            touched.add(folder.parent)
        while True:
            try:
                touched |= moving.move(
                    verdict.path,
                    destination,
                    verdict.identity,
                    part=part_file(folder, row_id),
                    sha256=verdict.sha256,
                )
            except moving.NameTakenError:
                destination = self._free_name(folder, verdict.path.name, verdict.event, set())
                self._ledger.redirect(row_id, destination)
                continue
            return destination

    def _entry(self, verdict: Verdict, chosen: set[Path]) -> Entry:
        folder = self._folders.of(verdict)
        destination = self._free_name(folder, verdict.path.name, verdict.event, chosen)
        chosen.add(destination)
        if verdict.event == "rejected":
            chosen.add(note_beside(destination))
        return Entry(
            event=verdict.event,
            source=verdict.path,
            destination=destination,
            device=verdict.identity.device,
            inode=verdict.identity.inode,
            bytes=verdict.identity.bytes,
            mtime_ns=verdict.identity.mtime_ns,
            sha256=verdict.sha256,
            label=verdict.label,
            best=verdict.best,
            confidence=verdict.confidence,
            probabilities=verdict.probabilities,
            model=verdict.model,
            reason=verdict.reason,
            width=verdict.width,
            height=verdict.height,
            decode_ms=verdict.decode_ms,
            infer_ms=verdict.infer_ms,
        )

    def _free_name(self, folder: Path, name: str, event: Event, chosen: set[Path]) -> Path:
        """A path in `folder` at which nothing is as of now: NAME, NAME-1, NAME-2, ... and not in `chosen`.

        Only a guess: it is the move itself that refuses to overwrite.
        """
        key = (folder, name)
        number = self._numbers.pop(key, 0)
        # The name itself is always tried first: its photo may have been taken away since.
        candidates = itertools.chain((0,), itertools.count(max(number, 1)))
        # A rejected file's number must survive in the name of its note, or all notes of a long name would be one.
        longest = LONGEST_NAME - len(REASON_SUFFIX) if event == "rejected" else LONGEST_NAME
        for number in candidates:
            path = folder / numbered(name, number, longest)
            wanted = (path, note_beside(path)) if event == "rejected" else (path,)
            if not any(want in chosen or os.path.lexists(want) for want in wanted):
                break
        self._numbers[key] = number
        if len(self._numbers) > REMEMBERED_NAMES:
            self._numbers.popitem(last=False)
        return path

    def _concerns_one_photo(self, error: OSError, destination: Path) -> bool:
        if error.errno not in _OF_ONE_PHOTO:
            return False
        return _is_writable(destination if destination.is_dir() else destination.parent) and _is_writable(
            self._inbox
        )


class BatchInterruptedError(errors.MachineError):
    """A fault of the machine stopped a batch; `filed` were in their place by then."""

    def __init__(self, message: str, filed: list[Filed]) -> None:
        super().__init__(message)
        self.filed = filed


def numbered(name: str, number: int, longest: int = LONGEST_NAME) -> str:
    """`name` for 0, else with `-number` before its extension, shortened to `longest` bytes where it has to be."""
    if number == 0:
        return name
    stem, extension = os.path.splitext(name)
    if len(os.fsencode(extension)) > LONGEST_NAME // 2:
        stem, extension = name, ""
    return _fitting(stem, f"-{number}{extension}", longest)


def note_beside(rejected: Path) -> Path:
    """Where the note lies that says why a file was rejected."""
    return rejected.with_name(_fitting(rejected.name, REASON_SUFFIX, LONGEST_NAME))


def _fitting(stem: str, ending: str, longest: int) -> str:
    """`stem` and `ending` joined, the stem cut between two characters where the whole would be too long a name."""
    encoded = os.fsencode(stem)
    room = longest - len(os.fsencode(ending))
    if len(encoded) > room:
        # A character of UTF-8 has 4 bytes at most; what goes on like one for longer is in another encoding.
        start = next((cut for cut in range(room, room - 4, -1) if encoded[cut] & 0xC0 != 0x80), room)
        encoded = encoded[:start]
    return os.fsdecode(encoded) + ending


def part_file(folder: Path, row_id: int) -> Path:
    """The hidden file through which the photo of row `row_id` is copied into `folder`."""
    return folder / f".pawsort-{row_id}.part"


def write_reason(rejected: Path, reason: str) -> None:
    """Leave a note beside a rejected file, unless the file is gone or a note is there. Raises OSError."""
    note = note_beside(rejected)
    # Through a hidden file, so that a full disk or a crash leaves no empty note, which would be taken for written.
    part = rejected.with_name(".pawsort-note.part")
    if not os.path.lexists(rejected) or os.path.lexists(note):
        part.unlink(missing_ok=True)
        return
    try:
        part.write_text(f"{reason}\n", encoding="utf-8", errors="backslashreplace")
        moving.rename_exclusively(part, note)
    except moving.NameTakenError:
        part.unlink()
    except OSError:
        part.unlink(missing_ok=True)
        raise


def _sync(folder: Path) -> None:
    """Make the names in `folder` durable.

    Raises OSError when this process had no means to try, UncertainError when it tried and failed.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except (FileNotFoundError, NotADirectoryError):
        # A folder that its owner removed has nothing left to be made durable.
        return
    except OSError as error:
        if error.errno in _OF_THIS_PROCESS:
            raise
        message = f"{folder}: cannot be synced to disk ({error.strerror})"
        raise moving.UncertainError(message) from error


def _is_writable(folder: Path) -> bool:
    """Whether files can be made in `folder`, by making one: permission bits do not tell of immutable folders."""
    probe = folder / f".pawsort-probe-{os.getpid()}.part"
    try:
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except OSError:
        return False
    os.unlink(probe)
    return True
