"""What the ledger knows of one photo, found by whatever a person has of it."""

from __future__ import annotations

import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from daemon.logs import readable
from daemon.moving import hash_file
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
