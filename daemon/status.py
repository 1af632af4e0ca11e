"""What the running daemon says of itself, in one small file that anybody may read at any time.

The daemon replaces `state/status.json` about once a second; `pawsort status` joins it with the ledger and the inbox,
so that it answers while the daemon runs, is busy, or is stopped.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import orjson
import structlog

from daemon import inbox, standing
from daemon.logs import as_json, readable
from pawsort import errors, ledger
from pawsort.config import Settings
from pawsort.ledger import Counts

FILE = "status.json"
LOCK = "daemon.lock"
LOCK_TRIES = 10
LOCK_PAUSE = 0.05  # seconds between two of them
READ_TRIES = 3
READ_PAUSE = 0.05  # seconds between two of them
STALE_AFTER = 15.0  # seconds without a sign of life after which a daemon that holds its lock counts as stuck


log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The daemon's own words. Times are seconds since the epoch."""

    pid: int
    started: float
    written: float
    ready: bool
    model: str
    engine: str
    watch: str
    in_flight: int
    waiting: Mapping[str, int]
    longest_waiting: str | None
    recovered_by_rescan: int
    last_rescan: float | None
    last_rescan_reason: str | None
    last_photo: str | None
    problems: Mapping[str, str] = field(default_factory=dict)
    filed: int = 0  # by this process

    def in_a_line(self) -> str:
        """For `systemctl status`."""
        parts = [f"DEGRADED ({key})" for key in self.problems]
        parts += [f"model {self.model}", f"{self.filed} filed"]
        if waiting := self.in_flight + sum(self.waiting.values()):
            parts.append(f"{waiting} waiting")
        if self.last_photo is not None:
            parts.append(f"last {self.last_photo}")
        return ", ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Backlog:
    """Files in the inbox that were not sorted yet."""

    files: int
    oldest_s: float | None  # since the file was put there or last changed


class StatusFile:
    """Writes the snapshot, atomically. It is news, not a record: nothing is synced."""

    def __init__(self, state: Path) -> None:
        self._file = state / FILE
        self._temporary = state / f".{FILE}.part"

    def write(self, snapshot: Snapshot) -> None:
        """Replace the file. Raises OSError."""
        words = as_json(asdict(snapshot)).encode()
        try:
            self._temporary.write_bytes(words)
        except OSError:
            # No room for a second file, which is what has to be told: over the old one, which has its room already.
            self._temporary.unlink(missing_ok=True)
            with self._file.open("r+b", buffering=0) as stream:
                stream.write(words)
                stream.truncate()
        else:
            self._temporary.replace(self._file)


class Problems:
    """What is wrong at present. One log line when a problem begins and one when it is over, however long it lasts."""

    def __init__(self) -> None:
        self.lasting: dict[str, str] = {}
        self.changed = False  # since the last time somebody asked

    def has(self, key: str) -> bool:
        """Whether the problem `key` lasts."""
        return key in self.lasting

    def set(self, key: str, problem: str | None) -> None:
        """Say what is wrong with `key`, or None when nothing is."""
        if problem is None:
            if self.lasting.pop(key, None) is not None:
                log.warning("recovered", problem=key)
                self.changed = True
            return
        if key not in self.lasting:
            log.error("degraded", problem=key, reason=problem)
            self.changed = True
        self.lasting[key] = problem


class Lock:
    """Held by the one daemon that works on a state folder; the kernel lets it go when the process ends, however."""

    def __init__(self, state: Path) -> None:
        self._file = state / LOCK
        self._stream: IO[str] | None = None

    def __enter__(self) -> Self:
        """Take the lock. Raises MachineError when another daemon has it."""
        stream = self._file.open("a+", encoding="ascii")
        for _ in range(LOCK_TRIES):
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # `pawsort status` holds it for a moment, to see whether it is free.
                time.sleep(LOCK_PAUSE)
                continue
            break
        else:
            stream.seek(0)
            message = f"{self._file}: another pawsort works on these folders already (process {stream.read().strip()})"
            stream.close()
            raise errors.MachineError(message) from None
        stream.truncate(0)
        stream.write(f"{os.getpid()}\n")
        stream.flush()
        self._stream = stream
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()


def is_running(state: Path) -> bool:
    """Whether a daemon holds the lock of this state folder."""
    try:
        with (state / LOCK).open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def read(state: Path) -> Mapping[str, Any] | None:
    """The last snapshot, or None when there is none that can be read."""
    for _ in range(READ_TRIES):
        try:
            snapshot = orjson.loads((state / FILE).read_bytes())
        except OSError:
            return None
        except ValueError:
            # Just being written in place, perhaps: see StatusFile.
            time.sleep(READ_PAUSE)
            continue
        return snapshot if isinstance(snapshot, dict) else None
    return None


def backlog(root: Path, *, recursive: bool, skip: frozenset[Path]) -> Backlog:
    """Count what lies in the inbox."""
    files, oldest = 0, None
    for entry in inbox.files_below(root, recursive=recursive, skip=skip):
        try:
            status = entry.stat(follow_symlinks=False)
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode):
            files += 1
            oldest = status.st_ctime if oldest is None else min(oldest, status.st_ctime)
    return Backlog(files=files, oldest_s=None if oldest is None else max(time.time() - oldest, 0.0))


def report(settings: Settings) -> dict[str, Any]:
    """Everything `pawsort status` shows: the daemon's snapshot, the ledger's counts, the inbox as it is now."""
    running = is_running(settings.state)
    snapshot = read(settings.state) or {}
    now = time.time()
    counts, rates = _counts(settings.state / ledger.FILE, now)
    waiting = backlog(settings.inbox, recursive=settings.recursive, skip=skipped_folders(settings))
    silent_s = now - snapshot.get("written", 0.0)
    problems: dict[str, str] = {}
    if running:
        problems |= snapshot.get("problems", {})
        if silent_s > STALE_AFTER:
            problems["daemon"] = f"no sign of life for {silent_s:.0f} s"
        if os.statvfs(settings.state).f_flag & os.ST_RDONLY:
            # The one fault that the daemon cannot write down.
            problems["state"] = f"{readable(settings.state)}: read-only file system"
    live = snapshot if running else {}
    model = standing.model(settings, now)
    found = {
        "ready": bool(live.get("ready")) and silent_s <= STALE_AFTER,
        "running": running,
        "pid": live.get("pid"),
        "degraded": problems,
        "backlog": waiting.files,
        "oldest_waiting_s": waiting.oldest_s,
        "in_flight": live.get("in_flight", 0),
        "waiting": live.get("waiting", {}),
        "longest_waiting": live.get("longest_waiting"),
        "sorted": counts.sorted,
        "review": counts.review,
        "rejected": counts.rejected,
        "by_label": dict(counts.by_label),
        "filed_last": rates,
        "review_waiting": standing.waiting_for_people(settings.review),
        "rejected_waiting": standing.waiting_for_people(settings.rejected),
        "recovered_by_rescan": snapshot.get("recovered_by_rescan", 0),
        "last_rescan": snapshot.get("last_rescan"),
        "last_rescan_reason": snapshot.get("last_rescan_reason"),
        "last_photo": snapshot.get("last_photo"),
        "watch": live.get("watch"),
        "model": live.get("model") or model["name"],
        # Of the current one: another may serve for a moment before it is taken over.
        "model_age_s": model["age_s"],
        "engine": live.get("engine") or settings.engine,
        "disks": standing.disks(settings),
    }
    return found | {"hints": standing.hints(found)}


def skipped_folders(settings: Settings) -> frozenset[Path]:
    """Folders of ours that may lie inside the inbox and are not part of it."""
    return frozenset({settings.sorted, settings.review, settings.rejected, settings.state, settings.models})


def _counts(file: Path, now: float) -> tuple[Counts, dict[str, int]]:
    """All that was ever filed, and what was filed lately."""
    if not file.exists():
        return Counts(by_label={}), dict.fromkeys(standing.PERIODS, 0)
    with ledger.Ledger(file, read_only=True) as book:
        return book.counts(), standing.rates(book, now)
