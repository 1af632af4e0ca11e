"""Photos back into the inbox: what `pawsort undo` and `pawsort retry` do.

A photo is put back only if it still lies where the daemon put it and has the very bytes that it was decided on.
One that a person has moved since, or changed, is theirs, and is left alone.

The order is that of filing: the row says "undoing" before the move and "undone" after it, so that a crash in between
is cleared up at the next start like any other (daemon.recovery).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from daemon import filing, moving
from daemon.inbox import files_below
from daemon.intake import Identity
from pawsort.bundle import sync_directory
from pawsort.ledger import Ledger, Row

BATCH = 64  # photos that share a commit


@dataclass(kw_only=True)
class Returned:
    """What became of the photos: back in the inbox, or left alone, with the reason."""

    back: list[tuple[Row | None, Path]] = field(default_factory=list)
    left: list[tuple[Path, str]] = field(default_factory=list)


def undo(ledger: Ledger, inbox: Path, rows: Sequence[Row]) -> Returned:
    """Put the photos of these rows back into the inbox.

    Raises LedgerError or OSError for a fault of the machine; what was put back by then stays so.
    """
    returned = Returned()
    movable: list[Row] = []
    for row in rows:
        if row.state != "done":
            returned.left.append((row.destination, f"is {row.state} already"))
        elif (reason := _why_not(row)) is not None:
            returned.left.append((row.destination, reason))
        else:
            movable.append(row)
    for start in range(0, len(movable), BATCH):
        _put_back(ledger, inbox, movable[start : start + BATCH], returned)
    return returned


def retry(ledger: Ledger, inbox: Path, folders: Sequence[Path]) -> Returned:
    """Put everything that lies in these folders (review, rejected) back into the inbox, known to the ledger or not."""
    returned = Returned()
    for path in list(_photos_in(folders, ledger)):
        rows = [row for row in ledger.find(path=path) if row.destination == path and row.state == "done"]
        if rows and _why_not(rows[0]) is None:
            _put_back(ledger, inbox, rows[:1], returned)
        else:
            # A person put it here, or changed it: no row speaks of it, and none has to.
            target = _move(path, inbox, Identity.of(os.lstat(path)), None)
            sync_directory(target.parent)
            sync_directory(path.parent)
            returned.back.append((None, target))
    return returned


def recover(ledger: Ledger) -> None:
    """Clear up what a crash left half undone: a photo that is where it was filed is filed, any other is back.

    Raises OSError or LedgerError; it can then be run again from the start.
    """
    rows = ledger.in_state("undoing")
    there = [row.id for row in rows if _why_not(row) is None]
    ledger.change_state(there, before="undoing", after="done")
    ledger.change_state([row.id for row in rows if row.id not in there], before="undoing", after="undone")


def _put_back(ledger: Ledger, inbox: Path, rows: Sequence[Row], returned: Returned) -> None:
    ledger.change_state([row.id for row in rows], before="done", after="undoing")
    undone: list[int] = []
    kept: list[int] = []
    touched = {inbox}
    try:
        for row in rows:
            identity = Identity.of(os.lstat(row.destination))
            try:
                target = _move(row.destination, inbox, identity, row.sha256, name=row.source.name)
            except moving.SourceChangedError:
                kept.append(row.id)
                returned.left.append((row.destination, "changed just now"))
                continue
            undone.append(row.id)
            touched.add(row.destination.parent)
            if row.event == "rejected":
                filing.note_beside(row.destination).unlink(missing_ok=True)
            returned.back.append((row, target))
        for folder in touched:
            sync_directory(folder)
    finally:
        # Rows that a fault kept from being moved go back to what they were.
        ledger.change_state(undone, before="undoing", after="undone")
        ledger.change_state([row.id for row in rows if row.id not in undone], before="undoing", after="done")


def _move(path: Path, inbox: Path, identity: Identity, sha256: str | None, name: str | None = None) -> Path:
    name = name or path.name
    number = 0
    while True:
        target = inbox / filing.numbered(name, number)
        part = inbox / f".pawsort-return-{os.getpid()}.part"
        try:
            moving.move(path, target, identity, part=part, sha256=sha256)
        except moving.NameTakenError:
            number += 1
        else:
            return target


def _why_not(row: Row) -> str | None:
    """Why the photo of this row is not ours to move, or None."""
    try:
        status = os.lstat(row.destination)
    except OSError:
        return "is not there any more"
    if not stat.S_ISREG(status.st_mode):
        return "is no file any more"
    if row.sha256 is None:
        found = Identity.of(status)
        same = (found.inode, found.bytes, found.mtime_ns) == (row.inode, row.bytes, row.mtime_ns)
        return None if same else "is not the file that was put there"
    if status.st_size != row.bytes or moving.hash_file(row.destination) != row.sha256:
        return "is not the photo that was put there"
    return None


def _photos_in(folders: Sequence[Path], ledger: Ledger) -> Iterator[Path]:
    """Files in these folders, without the notes that lie beside rejected ones."""
    for folder in folders:
        for entry in files_below(folder, recursive=True):
            path = Path(entry.path)
            if not entry.name.endswith(filing.REASON_SUFFIX) or ledger.find(path=path):
                yield path
