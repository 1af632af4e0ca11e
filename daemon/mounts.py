"""The file systems that our folders lie on, remembered across restarts, so that one that is missing is noticed.

The mount point of a disk that is not mounted is an ordinary folder, mostly an empty one. Photos filed there would
disappear beneath the disk when it is mounted again, and recovery would take photos on the disk for vanished.

Only mount points are remembered, not devices: those are numbered anew by every boot.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from pawsort import errors
from pawsort.bundle import sync_directory
from pawsort.config import Settings

FILE = "mounts.json"


class Mounts:
    """The mount points at and above our folders, and those of class folders; kept in the state folder.

    Raises MachineError when what was remembered cannot be read.
    """

    def __init__(self, settings: Settings) -> None:
        self._file = settings.state / FILE
        self._sorted = Path(os.path.realpath(settings.sorted))
        others = (settings.inbox, settings.review, settings.rejected)
        self._folders = {self._sorted, *(Path(os.path.realpath(folder)) for folder in others)}
        self._saved = self._read()
        self._known = {mount for mount in self._saved if self._concerns_us(mount)}

    def check(self) -> None:
        """Raise MachineError when a file system that was mounted once is not."""
        for mount in sorted(self._known):
            if not os.path.ismount(mount):
                message = (
                    f"{mount}: a file system was mounted here, and is not now; "
                    f"mount it, or remove {self._file} if photos are to lie elsewhere from now on"
                )
                raise errors.MachineError(message)

    def remember(self) -> None:
        """Take notice of what is mounted now. Raises OSError when it cannot be written down."""
        self._known |= set(self._found())
        if self._known != self._saved:
            self._write()
            self._saved = set(self._known)

    def problem(self) -> str | None:
        """Look at what is mounted: what is missing, in words, or None."""
        try:
            self.check()
            self.remember()
        except errors.MachineError as error:
            return str(error)
        except OSError as error:
            return f"{self._file}: cannot be written ({error.strerror})"
        return None

    def _found(self) -> Iterator[Path]:
        folders = set(self._folders)
        if self._sorted.is_dir():
            with os.scandir(self._sorted) as entries:
                folders |= {Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)}
        for folder in folders:
            mount = next(path for path in (folder, *folder.parents) if os.path.ismount(path))
            if mount != Path(mount.anchor):
                yield mount

    def _concerns_us(self, mount: Path) -> bool:
        """Whether one of our folders lies on it. The settings may have changed since it was remembered."""
        return mount.parent == self._sorted or any(folder.is_relative_to(mount) for folder in self._folders)

    def _read(self) -> set[Path]:
        try:
            names = json.loads(self._file.read_text(encoding="ascii"))
            return {Path(name) for name in names}
        except FileNotFoundError:
            return set()
        except (OSError, ValueError, TypeError) as error:
            raise errors.MachineError(f"{self._file}: cannot be read ({error}); remove it") from error

    def _write(self) -> None:
        part = self._file.with_name(f".{FILE}.part")
        with part.open("w", encoding="ascii") as stream:
            json.dump(sorted(str(mount) for mount in self._known), stream)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(self._file)
        sync_directory(self._file.parent)
