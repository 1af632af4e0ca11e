"""Where the daemon has put photos: just enough of the ledger to tell a person's hand from its own."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

from pawsort.ledger import Event, Ledger, State

DAY = 86_400.0  # seconds


class Placement(NamedTuple):
    """One row of the ledger, in short."""

    sha256: str
    state: State
    event: Event
    label: str | None
    destination: Path
    device: int
    inode: int
    bytes: int
    mtime_ns: int
    at: float  # seconds since the epoch: when it was filed, or decided where it is not filed yet


def placements(ledger: Ledger) -> list[Placement]:
    """Every photo that was ever decided about and whose content is known, oldest first. Raises LedgerError."""
    found = ledger.read(
        "SELECT sha256, state, event, label, destination, device, inode, bytes, mtime_ns, "
        "coalesce(filed_at, decided_at) AS at FROM photos WHERE sha256 IS NOT NULL ORDER BY id"
    )
    # Numbers above 2**63 are stored as negative ones.
    unsigned = 2**64 - 1
    return [
        Placement(
            sha256=row["sha256"],
            state=row["state"],
            event=row["event"],
            label=row["label"],
            destination=Path(os.fsdecode(row["destination"])),
            device=row["device"] & unsigned,
            inode=row["inode"] & unsigned,
            bytes=row["bytes"],
            mtime_ns=row["mtime_ns"],
            at=row["at"],
        )
        for row in found
    ]


def models_named_since(ledger: Ledger, days: float) -> set[str]:
    """Names of the models that decided about a photo within the last `days`. Raises LedgerError."""
    since = time.time() - days * DAY
    found = ledger.read(
        "SELECT DISTINCT model FROM photos WHERE model IS NOT NULL AND decided_at >= ?", [since]
    )
    return {row["model"] for row in found}
