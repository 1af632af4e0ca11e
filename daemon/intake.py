"""Is this file finished, ours, and regular? Policy in plain classes that take clocks; no threads.

One rule, the same at start-up and later. A file is finished

* when no process holds it open for writing, which a read lease on Linux tells for sure on a local file system;
* where leases cannot be had (somebody else's file, a network file system): at once when the watcher saw it closed
  after writing or renamed into place, otherwise when its size and modification time stood still for the quiet period.
"""

from __future__ import annotations

import errno
import fcntl
import fnmatch
import os
import stat
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

# Names under which programs keep what they have not finished writing, and what systems leave lying about.
TEMPORARY_NAMES = (
    ".*",  # dotfiles: rsync's .name.XXXXXX, ProFTPD's and lftp's .in.*, Syncthing's .syncthing.*
    "~syncthing~*",
    "*.part",  # Firefox, Nextcloud, curl wrappers
    "*.partial",  # rclone
    "*.filepart",  # WinSCP
    "*.crdownload",  # Chrome
    "*.download",  # Safari
    "*.tmp",
    "*~",
    "~$*",
    "Thumbs.db",
    "desktop.ini",
    "@eaDir",  # Synology's folders of thumbnails
)

# The most files remembered as waiting. The folder is the truth: what does not fit is found again by the next rescan.
MOST_WAITING = 10_000

WRITER_RECHECK = (
    1.0  # seconds until a file that was open for writing is looked at again, should its event be lost
)
FAULT_RECHECK = 2.0  # seconds until a file that the machine would not let us have is tried again


class Lease(Enum):
    """What trying to take a read lease tells about other processes that write to the file."""

    NO_WRITER = "no writer"
    WRITER = "writer"
    UNKNOWN = "unknown"


class Why(Enum):
    """Why a file has to wait."""

    WRITING = "a writer has it open"
    SETTLING = "just changed"
    UNFINISHED = "not whole yet"
    FAULT = "the machine does not give it"


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What makes a file the same file: a change to any of these means that it has to be looked at anew."""

    device: int
    inode: int
    bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        """Identity from a stat."""
        return cls(
            device=status.st_dev, inode=status.st_ino, bytes=status.st_size, mtime_ns=status.st_mtime_ns
        )


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """A path that may be a photo. `finished`: the watcher saw it closed after writing or renamed into place."""

    path: Path
    finished: bool = False
    noticed_at: float  # monotonic seconds


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A finished regular file, open for reading. Whoever takes it closes the descriptor."""

    path: Path
    descriptor: int
    identity: Identity
    noticed_at: float  # monotonic seconds
    first_seen: float  # monotonic seconds; when this identity was first seen at this path


@dataclass(frozen=True, kw_only=True)
class Wait:
    """Not yet: look again at `due` (monotonic seconds)."""

    path: Path
    why: Why
    due: float
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Ignore:
    """Not ours: a temporary name, a folder, a symbolic link, a device, or gone already."""

    path: Path
    reason: str


@dataclass(kw_only=True)
class _Sighting:
    identity: Identity
    first_seen: float  # monotonic seconds
    why: Why
    due: float
    detail: str
    finished: bool
    noticed_at: float


class Intake:
    """Decides about arrivals, and remembers those that have to wait.

    `settle_s` is the quiet period, `patience_s` how long an unfinished picture is taken for an upload.
    `leases`: whether a read lease can be trusted here. On network file systems it does not see remote writers.
    """

    def __init__(
        self,
        *,
        settle_s: float,
        patience_s: float,
        leases: bool = True,
        monotonic: Callable[[], float] = time.monotonic,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settle_s = settle_s
        self._patience_s = patience_s
        self._leases = leases
        self._monotonic = monotonic
        self._clock = clock
        self._started, self._started_monotonic = clock(), monotonic()
        self._waiting: OrderedDict[Path, _Sighting] = OrderedDict()
        self._left_alone: OrderedDict[Path, Identity] = OrderedDict()
        self.forgot_some = (
            False  # set when there were more waiting files than are remembered: a rescan is due
        )

    def examine(self, arrival: Arrival) -> Ready | Wait | Ignore:
        """Look at one arrival. Never blocks: what is not a regular file is never opened."""
        path = arrival.path
        if reason := ignored_name(path.name):
            return Ignore(path=path, reason=reason)
        try:
            status = os.lstat(path)
            if not stat.S_ISREG(status.st_mode):
                return self._drop(path, f"is a {_kind(status.st_mode)}")
            if self._left_alone.get(path) == Identity.of(status):
                return Ignore(path=path, reason="is left alone")
            descriptor = os.open(
                path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
            )
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO}:
                return self._drop(path, "is gone")
            unknown = Identity(device=0, inode=0, bytes=0, mtime_ns=0)
            return self.wait(arrival, Why.FAULT, unknown, os.strerror(error.errno or 0))
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                os.close(descriptor)
                return self._drop(path, f"is a {_kind(status.st_mode)}")
            verdict = self._finished(arrival, descriptor, status)
        except BaseException:
            os.close(descriptor)
            raise
        if isinstance(verdict, Wait):
            os.close(descriptor)
        else:
            self._waiting.pop(path, None)
        return verdict

    def unfinished(self, ready: Ready, detail: str) -> Wait | None:
        """The picture turned out not to be whole. Wait while that may still change; None when patience is over."""
        now = self._monotonic()
        age = max(now - ready.first_seen, self._age(ready.identity))
        if age >= self._patience_s:
            return None
        arrival = Arrival(path=ready.path, noticed_at=ready.noticed_at)
        return self.wait(
            arrival,
            Why.UNFINISHED,
            ready.identity,
            detail,
            delay=self._patience_s - age,
            first_seen=ready.first_seen,
        )

    def wait(
        self,
        arrival: Arrival,
        why: Why,
        identity: Identity,
        detail: str = "",
        *,
        delay: float | None = None,
        first_seen: float | None = None,
    ) -> Wait:
        """Remember that a file has to wait: `delay` seconds, or as long as is usual for the reason."""
        now = self._monotonic()
        before = self._waiting.pop(arrival.path, None)
        if before is not None and before.identity == identity:
            first_seen = before.first_seen
        if delay is None:
            delay = {Why.SETTLING: self._settle_s, Why.FAULT: FAULT_RECHECK}.get(why, WRITER_RECHECK)
        sighting = _Sighting(
            identity=identity,
            first_seen=now if first_seen is None else first_seen,
            why=why,
            due=now + delay,
            detail=detail,
            finished=arrival.finished,
            noticed_at=arrival.noticed_at,
        )
        if len(self._waiting) >= MOST_WAITING:
            self.forgot_some = True
        else:
            self._waiting[arrival.path] = sighting
        return Wait(path=arrival.path, why=why, due=sighting.due, detail=detail)

    def leave_alone(self, ready: Ready) -> None:
        """Pass this file over from now on, until it changes."""
        self._left_alone[ready.path] = ready.identity
        if len(self._left_alone) > MOST_WAITING:
            self._left_alone.popitem(last=False)

    def due(self) -> list[Arrival]:
        """Waiting files whose time to be looked at again has come. They stay remembered until they are examined."""
        now = self._monotonic()
        return [
            Arrival(path=path, finished=sighting.finished, noticed_at=sighting.noticed_at)
            for path, sighting in self._waiting.items()
            if sighting.due <= now
        ]

    def next_due(self) -> float | None:
        """When the next waiting file is due, monotonic seconds."""
        return min((sighting.due for sighting in self._waiting.values()), default=None)

    def holds(self, path: Path) -> bool:
        """Whether a rescan need not examine this path: it comes by itself when it is due, or is left alone."""
        if path in self._waiting:
            return True
        if path not in self._left_alone:
            return False
        try:
            return self._left_alone[path] == Identity.of(os.lstat(path))
        except OSError:
            return True

    def waiting(self) -> dict[Why, int]:
        """How many files wait, by reason."""
        counts = dict.fromkeys(Why, 0)
        for sighting in self._waiting.values():
            counts[sighting.why] += 1
        return counts

    def fault(self) -> str | None:
        """What the machine does not let us have, in words, or None."""
        details = [sighting.detail for sighting in self._waiting.values() if sighting.why is Why.FAULT]
        return f"{len(details)} files are not given by the machine: {details[0]}" if details else None

    def longest_waiting(self) -> tuple[Path, str, float] | None:
        """The file that has waited longest: path, why, seconds."""
        if not self._waiting:
            return None
        path, sighting = min(self._waiting.items(), key=lambda item: item[1].first_seen)
        return path, sighting.detail or sighting.why.value, self._monotonic() - sighting.first_seen

    def _finished(self, arrival: Arrival, descriptor: int, status: os.stat_result) -> Ready | Wait:
        identity = Identity.of(status)
        before = self._waiting.get(arrival.path)
        if before is not None and before.identity != identity:
            before = None
        ready = Ready(
            path=arrival.path,
            descriptor=descriptor,
            identity=identity,
            noticed_at=arrival.noticed_at,
            first_seen=self._monotonic() if before is None else before.first_seen,
        )
        if before is not None and before.why is Why.UNFINISHED and before.due > self._monotonic():
            # Decoding the same bytes again would find the same: wait for a change or for the end of patience.
            return self.wait(
                arrival, Why.UNFINISHED, identity, before.detail, delay=before.due - self._monotonic()
            )
        if identity.bytes == 0 and self._still_for(before, identity) < self._patience_s:
            return self.wait(arrival, Why.UNFINISHED, identity, "is empty", delay=WRITER_RECHECK)

        lease = read_lease(descriptor) if self._leases else Lease.UNKNOWN
        if lease is Lease.WRITER:
            return self.wait(arrival, Why.WRITING, identity)
        if lease is Lease.NO_WRITER or arrival.finished:
            return ready
        still_for = self._still_for(before, identity)
        if still_for >= self._settle_s:
            return ready
        return self.wait(arrival, Why.SETTLING, identity, delay=self._settle_s - still_for)

    def _still_for(self, before: _Sighting | None, identity: Identity) -> float:
        """Seconds for which size and time stood still: as watched by us, or by the file's own time if longer."""
        watched = self._monotonic() - before.first_seen if before is not None else 0.0
        return max(watched, self._age(identity))

    def _age(self, identity: Identity) -> float:
        """Seconds since the last modification; 0 when that lies in the future, for then one of the clocks is wrong.

        A clock that was put forward while we ran makes nothing older than it is.
        """
        steady = self._started + self._monotonic() - self._started_monotonic
        return max(min(self._clock(), steady) - identity.mtime_ns / 1e9, 0.0)

    def _drop(self, path: Path, reason: str) -> Ignore:
        self._waiting.pop(path, None)
        return Ignore(path=path, reason=reason)


def ignored_name(name: str) -> str | None:
    """Why a file or folder of this name is left alone, or None when it is not."""
    for pattern in TEMPORARY_NAMES:
        if fnmatch.fnmatchcase(name, pattern):
            return f"has a temporary name ({pattern})"
    return None


def read_lease(descriptor: int) -> Lease:
    """Whether another process has this file open for writing: try a read lease, and give it back at once.

    The kernel refuses a lease with EAGAIN while there is a writer, and with EACCES to those who neither own the file
    nor have CAP_LEASE. While we hold one, a writer's open would send us SIGIO: the service ignores that signal.
    """
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return Lease.WRITER if error.errno == errno.EAGAIN else Lease.UNKNOWN
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return Lease.NO_WRITER


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "folder",
        stat.S_IFLNK: "symbolic link",
        stat.S_IFIFO: "named pipe",
        stat.S_IFSOCK: "socket",
        stat.S_IFCHR: "device",
        stat.S_IFBLK: "device",
    }
    return kinds.get(stat.S_IFMT(mode), "special file")
