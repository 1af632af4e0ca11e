"""The inbox: what has arrived. Events are hints, the folder is the truth.

The watchdog observer's threads only put paths on a bounded list and wake the loop. A rescan finds what events missed;
start-up is just the first rescan. Candidates come out one at a time, so that a folder with a million files costs no
more memory than one with ten.

What watchdog does on Linux, and what is done about it (each was reproduced):

* a file renamed or linked in is only "created" or "moved", never "closed": all three are listened to
* when the kernel's queue overflows, events are lost with no event to say so, only a warning in watchdog's log: it is
  caught, and a rescan follows at once
* a watched folder that is removed, replaced, or unmounted goes blind while everything reports to be alive: the
  folder's device and inode are compared regularly, and the watch is armed anew
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from watchdog.events import (
    DirCreatedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers.inotify import InotifyEmitter, InotifyObserver
from watchdog.observers.inotify_c import InotifyConstants, Mask
from watchdog.observers.polling import PollingObserver

from daemon.intake import Arrival, ignored_name
from daemon.logs import readable

if TYPE_CHECKING:
    from watchdog.observers.api import BaseObserver
    from watchdog.observers.inotify_move_event_grouper import GroupedInotifyEvent

Watch = Literal["auto", "native", "polling"]

MOST_HINTS = 20_000  # paths; when more arrive than the loop can take, a rescan finds the rest
POLLING_INTERVAL = 2.0  # seconds between two looks of the polling observer
HEALTH_INTERVAL = 1.0  # seconds between two looks at the watched folder itself
RECOVERY_AGE = 2.0  # seconds; of a younger file the event may only be late: no recovery to be counted
UNREADABLE_RETRY = 5.0  # seconds until the next rescan after one that could not read every folder
STOP_TIMEOUT = 2.0  # seconds for the observer's threads to end

# Reasons for a rescan after which a file without an event is known to be recovered, however young.
_LOST = "events were lost"
_TOO_MANY = "more events than could be remembered"
_LOSSES = {_LOST, _TOO_MANY}

# f_type of file systems on which other machines write without the kernel here noticing (statfs(2), linux/magic.h).
NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "afs", "9p", "ceph", "fuse.sshfs", "fuse.rclone"}


@dataclass(frozen=True, kw_only=True)
class Health:
    """Whether the inbox is being watched: how, and what is wrong with it if anything."""

    method: str  # "native" or "polling"
    why: str  # why this method
    problem: str | None


class Inbox:
    """Arrivals in the folder `root`. All methods but the observer's callbacks belong to the loop's thread.

    `skip` are folders inside that are not looked into. `wake` is called, from another thread, when there is news.
    """

    def __init__(
        self,
        root: Path,
        *,
        recursive: bool,
        rescan_s: float,
        watch: Watch = "auto",
        skip: frozenset[Path] = frozenset(),
        wake: Callable[[], None] = lambda: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.root = root
        self._recursive = recursive
        self._rescan_s = rescan_s
        self._watch = watch
        self._skip = skip
        self._wake = wake
        self._monotonic = monotonic

        self._lock = threading.Lock()
        self._hints: OrderedDict[Path, Arrival] = OrderedDict()
        self._rescan_wanted: str | None = "start-up"
        self._observer: BaseObserver | None = None
        self._overflow = _OverflowListener(self)
        self._watched: tuple[int, int] | None = None  # device and inode of the folder that is being watched
        self._method, self._why = "native", "events from the kernel"
        self._problem: str | None = None
        self._next_health = 0.0

        self._scan: Iterator[os.DirEntry[str]] | None = None
        self._scan_reason = ""
        self._next_rescan = 0.0
        self.last_rescan: tuple[float, str] | None = None  # when, in seconds since the epoch, and why
        self.recovered_by_rescan = 0
        self._rescans_done = 0
        self._refusal: str | None = None  # a folder that the scan under way could not read, in words
        self.unreadable: str | None = None  # the same of the last whole scan

    # Watching

    def start(self) -> None:
        """Begin to watch. A folder that is missing is waited for; see `health`."""
        logging.getLogger("watchdog.observers.inotify_c").addHandler(self._overflow)
        self.check_health()

    def stop(self) -> None:
        """Stop watching."""
        logging.getLogger("watchdog.observers.inotify_c").removeHandler(self._overflow)
        self._disarm()

    @property
    def health(self) -> Health:
        """How the folder is watched, and what is wrong."""
        return Health(method=self._method, why=self._why, problem=self._problem)

    def check_health(self) -> None:
        """Compare what is being watched with what is there, at most once in HEALTH_INTERVAL; arm the watch anew."""
        now = self._monotonic()
        if now < self._next_health:
            return
        self._next_health = now + HEALTH_INTERVAL
        try:
            status = os.stat(self.root)
            identity = (status.st_dev, status.st_ino)
        except OSError as error:
            self._disarm()
            self._problem = f"{readable(self.root)}: {error.strerror}"
            return
        observer = self._observer
        if (
            observer is not None
            and identity == self._watched
            and observer.is_alive()
            and all(emitter.is_alive() for emitter in observer.emitters)
        ):
            self._problem = None
            return
        first = observer is None and self._watched is None and self._problem is None
        self._disarm()
        self._arm()
        self._watched = identity
        self._problem = None
        # What came between the two watches has no event.
        self.want_rescan("start-up" if first else "the folder was replaced")

    def _arm(self) -> None:
        if self._watch == "polling":
            self._arm_with("polling", "set in the configuration")
            return
        if self._watch == "auto" and (kind := file_system(self.root)) in NETWORK_FILE_SYSTEMS:
            self._arm_with("polling", f"{kind} tells nothing of what other machines write")
            return
        try:
            self._arm_with("native", "events from the kernel")
        except OSError as error:
            if self._watch == "native" or error.errno not in {errno.ENOSPC, errno.EMFILE}:
                raise
            limit = "max_user_watches" if error.errno == errno.ENOSPC else "max_user_instances"
            self._arm_with("polling", f"the limit fs.inotify.{limit} of this machine is reached")

    def _arm_with(self, method: str, why: str) -> None:
        observer: BaseObserver = (
            _ArrivalObserver() if method == "native" else PollingObserver(timeout=POLLING_INTERVAL)
        )
        # Only what can mean an arrival: halves the use of watchdog's queue, and with it the events lost in a burst.
        kinds = [FileCreatedEvent, FileClosedEvent, FileMovedEvent, DirCreatedEvent, DirMovedEvent]
        observer.schedule(_Handler(self), str(self.root), recursive=self._recursive, event_filter=kinds)
        try:
            observer.start()
        except OSError:
            observer.stop()  # or its inotify instance would stay, of which the machine has few
            raise
        self._observer, self._method, self._why = observer, method, why

    def _disarm(self) -> None:
        observer, self._observer = self._observer, None
        if observer is not None:
            observer.stop()
            observer.join(STOP_TIMEOUT)

    # News, from any thread

    def hint(self, path: Path, *, finished: bool) -> None:
        """A path may be a new photo. Called by the observer's thread."""
        with self._lock:
            before = self._hints.pop(path, None)
            if before is None and len(self._hints) >= MOST_HINTS:
                self._rescan_wanted = _TOO_MANY
                return
            self._hints[path] = Arrival(
                path=path,
                finished=finished or (before is not None and before.finished),
                noticed_at=self._monotonic(),
            )
        self._wake()

    def want_rescan(self, reason: str) -> None:
        """Ask for a rescan as soon as the loop has time."""
        with self._lock:
            if self._rescan_wanted is None or reason in _LOSSES:
                self._rescan_wanted = reason
        self._wake()

    # Arrivals, for the loop

    def next(self, known: Callable[[Path], bool]) -> Arrival | None:
        """The next candidate, or None when there is none now.

        `known` tells of paths that are in flight or waiting already: a rescan passes them over.
        """
        with self._lock:
            if self._hints:
                return self._hints.popitem(last=False)[1]
        scan = self._scanning()
        for entry in scan or ():
            path = Path(entry.path)
            if known(path):
                continue
            if self._rescans_done and (self._scan_reason in _LOSSES or _age(entry) > RECOVERY_AGE):
                self.recovered_by_rescan += 1
            return Arrival(path=path, noticed_at=self._monotonic())
        if scan is not None:
            # The loop has its turn before the next scan, however soon that is due.
            self._finish_scan()
        return None

    @property
    def exhausted(self) -> bool:
        """Whether everything that is known of has been handed out."""
        with self._lock:
            return not self._hints and self._scan is None and self._rescan_wanted is None

    @property
    def hints_waiting(self) -> int:
        """How many arrivals the watcher has told of that were not handed out yet."""
        with self._lock:
            return len(self._hints)

    def next_rescan_in(self) -> float:
        """Seconds until the next regular rescan."""
        return max(self._next_rescan - self._monotonic(), 0.0)

    def _scanning(self) -> Iterator[os.DirEntry[str]] | None:
        """The scan under way; a new one when one is wanted or due."""
        if self._scan is None:
            now = self._monotonic()
            with self._lock:
                reason = self._rescan_wanted or ("regular" if now >= self._next_rescan else None)
                self._rescan_wanted = None
            if reason is not None:
                self._scan_reason = reason
                self._refusal = None
                self._scan = files_below(self.root, self._note, recursive=self._recursive, skip=self._skip)
        return self._scan

    def _finish_scan(self) -> None:
        self._scan = None
        self._rescans_done += 1
        self.last_rescan = (time.time(), self._scan_reason)
        self.unreadable = self._refusal
        pause = self._rescan_s if self.unreadable is None else min(self._rescan_s, UNREADABLE_RETRY)
        self._next_rescan = self._monotonic() + pause

    def _note(self, folder: Path, error: OSError) -> None:
        self._refusal = self._refusal or f"{readable(folder)} cannot be read: {error.strerror}"


def files_below(
    root: Path,
    refused: Callable[[Path, OSError], None] = lambda _folder, _error: None,
    *,
    recursive: bool,
    skip: frozenset[Path] = frozenset(),
) -> Iterator[os.DirEntry[str]]:
    """Entries below `root` that may be photos, lazily.

    Folders that are gone are left out, and so are those that cannot be read, of which `refused` is told.
    One folder is open at a time; those still to be looked into are remembered by name.
    """
    folders = [root]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if ignored_name(entry.name):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        if recursive and (path := Path(entry.path)) not in skip:
                            folders.append(path)
                    elif entry.is_file(follow_symlinks=False):
                        yield entry
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            refused(folder, error)


def file_system(path: Path) -> str:
    """Type of the file system that `path` lies on, by /proc/self/mountinfo; "" when it cannot be told."""
    try:
        device = os.stat(path).st_dev
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in lines:
        # 36 35 98:0 /root /mount options - ext4 /dev/sda1 options   (proc_pid_mountinfo(5))
        before, _, after = line.partition(" - ")
        if before.split()[2] == wanted:
            return after.split()[0]
    return ""


def _age(entry: os.DirEntry[str]) -> float:
    """Seconds since the entry was last changed or renamed; 0 when it is gone."""
    try:
        return time.time() - entry.stat(follow_symlinks=False).st_ctime
    except OSError:
        return 0.0


class _ArrivalEmitter(InotifyEmitter):
    """Tells of arrivals only.

    watchdog holds back each "moved from" for half a second, to pair it with a "moved to", and everything that comes
    after it waits as well: each photo that we file would delay the next one by that long. We need no pairs, so "moved
    from" is not asked for, and each "moved to" is told by itself.
    """

    def get_event_mask_from_filter(self) -> Mask:
        return Mask(super().get_event_mask_from_filter() & ~InotifyConstants.IN_MOVED_FROM)

    def build_and_queue_event(self, event: GroupedInotifyEvent, *, full_events: bool = True) -> None:
        super().build_and_queue_event(event, full_events=full_events)


class _ArrivalObserver(InotifyObserver):
    def __init__(self) -> None:
        super().__init__()
        self._emitter_class = _ArrivalEmitter


class _Handler(FileSystemEventHandler):
    """watchdog's side: runs on the observer's only thread, so it does next to nothing and never raises."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox

    def dispatch(self, event: FileSystemEvent) -> None:
        if event.is_directory:
            # The files in a folder that was moved in have no events of their own.
            self._inbox.want_rescan("a folder arrived")
            return
        path = event.dest_path if event.event_type == "moved" else event.src_path
        if path:
            self._inbox.hint(Path(os.fsdecode(path)), finished=event.event_type in {"closed", "moved"})


class _OverflowListener(logging.Handler):
    """Hears watchdog's warning that events were lost, which is the only sign of it."""

    def __init__(self, inbox: Inbox) -> None:
        super().__init__(logging.WARNING)
        self._inbox = inbox

    def emit(self, record: logging.LogRecord) -> None:
        if "overflow" in record.getMessage().lower():
            self._inbox.want_rescan(_LOST)
