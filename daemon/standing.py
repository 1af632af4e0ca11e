"""What `pawsort status` finds out by itself: how fast photos are filed, how many wait for people, what room is left.

All of it is read from the ledger and from folders: it is the same while the daemon runs, is busy, or is stopped.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from daemon.filing import REASON_SUFFIX
from daemon.inbox import files_below
from pawsort import bundle, errors
from pawsort.config import Settings
from pawsort.ledger import Ledger
from pawsort.registry import Registry

PERIODS: Final = {"minute": 60.0, "hour": 3600.0, "day": 86400.0}  # seconds
LITTLE_ROOM: Final = 0.02  # share of a disk below which it counts as nearly full
ENOUGH: Final = 100  # photos filed, before a hint is derived from their shares


def rates(ledger: Ledger, now: float) -> dict[str, int]:
    """How many photos were filed in the last minute, hour and day. Raises LedgerError."""
    return {name: ledger.counts(now - seconds).total for name, seconds in PERIODS.items()}


def waiting_for_people(folder: Path) -> int:
    """How many photos lie in `review` or `rejected` now, whatever the ledger says was ever put there."""
    return sum(1 for entry in files_below(folder, recursive=True) if not entry.name.endswith(REASON_SUFFIX))


def disks(settings: Settings) -> list[dict[str, Any]]:
    """Room left on each file system that is written to: one entry each, with the first of our folders on it."""
    found: dict[int, dict[str, Any]] = {}
    for name in ("sorted", "review", "rejected", "state"):
        folder: Path = getattr(settings, name)
        try:
            device = os.stat(folder).st_dev
            room = shutil.disk_usage(folder)
        except OSError:
            continue  # not made yet, or away: the daemon says so itself
        entry = {"folder": str(folder), "free_bytes": room.free, "total_bytes": room.total}
        found.setdefault(device, {**entry, "nearly_full": room.free < LITTLE_ROOM * room.total})
    return list(found.values())


def model(settings: Settings, now: float) -> dict[str, Any]:
    """The current model: its name and its age in seconds; both None where none can serve."""
    try:
        folder = Registry(settings.models).current()
        manifest: Mapping[str, Any] = bundle.read_manifest(folder)
    except errors.ModelError:
        return {"name": None, "age_s": None}
    return {"name": str(manifest.get("name", folder.name)), "age_s": _age(manifest.get("created"), now)}


def hints(report: Mapping[str, Any]) -> list[str]:
    """What a person might do about what is not as it should be."""
    full = [disk["folder"] for disk in report["disks"] if disk["nearly_full"]]
    told = [f"the disk with {folder} is nearly full; make room" for folder in full]
    if "daemon" in report["degraded"]:
        told.append("it seems stuck: `journalctl -u pawsort` or its log tells what it did last; restart it")
    elif report["degraded"]:
        told.append("it tries again by itself, and goes on when the cause is gone")
    if not report["running"] and report["backlog"]:
        told.append(f"{report['backlog']} photos wait in the inbox and nobody sorts them: `pawsort run`")
    if report["model"] is None:
        told.append("no model can serve: `pawsort check` says why")
    if report["review_waiting"] > report["sorted"] and report["sorted"] + report["review"] >= ENOUGH:
        told.append(
            "more goes to review than is sorted: lower `threshold`, or train a model on your own photos"
        )
    return told


def _age(created: object, now: float) -> float | None:
    try:
        return max(now - datetime.fromisoformat(str(created)).timestamp(), 0.0)
    except ValueError:
        return None
