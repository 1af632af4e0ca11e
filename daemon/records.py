"""What the ledger knows of one photo, found by whatever a person has of it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from daemon.inbox import files_below
from daemon.logs import readable
from daemon.moving import hash_file
from pawsort import errors
from pawsort.config import Settings
from pawsort.ledger import FILE, Ledger, Row

_SHA256 = re.compile(r"[0-9a-f]{6,64}", re.IGNORECASE)


def find(settings: Settings, what: str) -> list[Row]:
    """Rows about `what`, newest first: a path (of the file, or where it once was), a name on arrival, or a SHA-256.

    A file that lies somewhere is also found by its content, wherever it was moved or however it was renamed since.
    Raises LedgerError.
    """
    file = settings.state / FILE
    if not file.exists():
        return []
    path = Path(os.path.abspath(what))
    found: dict[int, Row] = {}
    with Ledger(file, read_only=True) as ledger:
        if path.is_file():
            for row in ledger.find(sha256=hash_file(path)):
                found[row.id] = row
        for row in ledger.find(path=path, name=os.fsencode(path.name)):
            found[row.id] = row
        if _SHA256.fullmatch(what):
            for row in ledger.find(sha256=what.lower()):
                found[row.id] = row
    return [found[key] for key in sorted(found, reverse=True)]


def as_document(row: Row) -> dict[str, Any]:
    """A row as plain values, paths readable."""
    document = asdict(row)
    document["source"] = readable(row.source)
    document["destination"] = readable(row.destination)
    document["file"] = readable(row.source.name)
    document["is_there"] = os.path.lexists(row.destination)
    return document


def open_ledger(settings: Settings) -> Ledger:
    """The ledger, to write to; a daemon may be at work on it. Raises LedgerError when there is none yet."""
    file = settings.state / FILE
    if not file.exists():
        raise errors.LedgerError(f"{file}: there is no ledger yet; nothing was sorted here")
    return Ledger(file)


def confirm(ledger: Ledger, settings: Settings, paths: Sequence[Path]) -> int:
    """Record the labels of photos in class folders as right, by content. Returns how many.

    `paths` are files or folders below `sorted`; none means all of it. Raises DataError for a path that lies elsewhere.
    """
    labels: dict[str, str] = {}
    for path in paths or (settings.sorted,):
        whole = Path(os.path.abspath(path))
        if not whole.is_relative_to(settings.sorted):
            raise errors.DataError(f"{path}: does not lie in a class folder below {settings.sorted}")
        files = (
            [Path(entry.path) for entry in files_below(whole, recursive=True)] if whole.is_dir() else [whole]
        )
        for file in files:
            parts = file.relative_to(settings.sorted).parts
            if len(parts) > 1:
                labels[hash_file(file)] = parts[0]
    ledger.confirm(labels)
    return len(labels)
