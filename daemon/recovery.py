"""What a crash left half done: every row in state "intent" is finished or taken back before the daemon starts.

    found                                   rule
    source only                             forget the row, the photo is sorted anew
    destination only, same inode or hash    done
    both, same inode                        unlink the source, done
    both, other inode, same hash            sync the destination, unlink the source, done; unless the destination is
                                            the very file that was decoded: then the source is a new arrival and stays
    both, other hash                        the name was taken: forget the row, the photo is sorted anew
    empty placeholder and source            remove the placeholder, forget the row
    a stale hidden copy of ours             remove it
    neither                                 "vanished": said so, never "done"

A destination that was not reached yet may belong to somebody else, so it counts as ours only by inode or by hash.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from daemon import filing, moving
from daemon.intake import Identity
from pawsort.bundle import sync_directory
from pawsort.ledger import Ledger, Row


@dataclass(kw_only=True)
class Recovered:
    """What recovery did, by row."""

    finished: list[Row] = field(default_factory=list)
    taken_back: list[Row] = field(default_factory=list)
    vanished: list[Row] = field(default_factory=list)


def recover(ledger: Ledger) -> Recovered:
    """Clear up every intent. Run before anything else touches the folders.

    Raises OSError or LedgerError for a fault of the machine; recovery can then be run again from the start.
    """
    recovered = Recovered()
    rows = ledger.intents()
    for row in rows:
        with suppress(FileNotFoundError, NotADirectoryError):
            filing.part_file(row.destination.parent, row.id).unlink()
        _clear_up(row, recovered)
    _sync({path.parent for row in rows for path in (row.source, row.destination)})
    ledger.finish([(row.id, None) for row in recovered.finished])
    ledger.forget([row.id for row in recovered.taken_back])
    ledger.mark_vanished([row.id for row in recovered.vanished])
    return recovered


def _clear_up(row: Row, recovered: Recovered) -> None:
    source = _regular_file(row.source)
    destination = _regular_file(row.destination)
    source_is_ours = source is not None and _is_row(row, row.source, source)
    if destination is not None and _is_placeholder(row, destination, source_is_ours=source_is_ours):
        row.destination.unlink()
        destination = None

    if destination is None or not _is_row(row, row.destination, destination):
        still_there = source is not None and (source_is_ours or Identity.of(source).inode == row.inode)
        (recovered.taken_back if still_there else recovered.vanished).append(row)
        return
    if source is not None and source_is_ours and _is_copied(row, source, destination):
        # The destination has to be durable, bytes and name, before the source goes.
        if not os.path.samestat(source, destination):
            _sync_file(row.destination)
        sync_directory(row.destination.parent)
        row.source.unlink()
    if row.event == "rejected" and row.reason is not None:
        filing.write_reason(row.destination, row.reason)
    recovered.finished.append(row)


def _is_row(row: Row, path: Path, status: os.stat_result) -> bool:
    """Whether the file at `path` is the photo of this row: by inode and size, or by content."""
    if _is_the_very_file(row, status):
        return True
    if row.sha256 is None:
        # Never hashed, because the decoder died on it: a copy has the size and the time of its source.
        return (status.st_size, status.st_mtime_ns) == (row.bytes, row.mtime_ns)
    return status.st_size == row.bytes and moving.hash_file(path) == row.sha256


def _is_the_very_file(row: Row, status: os.stat_result) -> bool:
    identity = Identity(device=row.device, inode=row.inode, bytes=row.bytes, mtime_ns=row.mtime_ns)
    return Identity.of(status) == identity


def _is_copied(row: Row, source: os.stat_result, destination: os.stat_result) -> bool:
    """Whether source and destination are the one photo of this row, so that the source may go.

    Where the photo itself was moved, what lies at its source is another photo that arrived since, of the same bytes
    perhaps: it stays, to be sorted as the settings say.
    """
    if os.path.samestat(source, destination):
        return True
    if _is_the_very_file(row, destination):
        return False
    return row.sha256 is not None or moving.hash_file(row.source) == moving.hash_file(row.destination)


def _is_placeholder(row: Row, destination: os.stat_result, *, source_is_ours: bool) -> bool:
    """An empty file where a photo with bytes was going, the photo itself still being at its source."""
    return source_is_ours and destination.st_size == 0 and row.bytes > 0


def _regular_file(path: Path) -> os.stat_result | None:
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync(folders: set[Path]) -> None:
    for folder in folders:
        if folder.is_dir():
            sync_directory(folder)
