"""Counts photos after a fault: is each in exactly one place, whole, and does the ledger say so?"""

import contextlib
import hashlib
import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

NOTE = ".reason.txt"
PROBLEMS = (
    "lost", "duplicated", "overwritten", "torn", "rows without photos", "photos without rows", "unfinished rows", "left lying",
)  # fmt: skip


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def take(
    inbox: Path,
    folders: Iterable[Path],
    ledger: Path,
    arrived: Counter[str],
    residents: Mapping[Path, str] = {},
) -> dict[str, list[str]]:
    """What is wrong, by kind; {} when nothing is.

    `arrived` counts the photos that ever were in the inbox by their SHA-256; `residents` are files that lay in the
    folders before, path -> SHA-256, which nobody may touch.
    """
    wrong: dict[str, list[str]] = {problem: [] for problem in PROBLEMS}
    folders = list(folders)
    there = {path: sha256(path) for top in (inbox, *folders) for path in _files(top)}
    for path, digest in residents.items():
        if there.pop(path, None) != digest:
            wrong["overwritten"].append(str(path))
    for path in list(there):
        if path.name.startswith(".pawsort"):
            wrong["left lying"].append(str(path))
            del there[path]
        elif path.name.endswith(NOTE) and there[path] not in arrived:
            del there[path]
    found = Counter(there.values())
    wrong["lost"] = list((arrived - found).elements())
    wrong["torn"] = [str(path) for path, digest in there.items() if digest not in arrived]
    wrong["duplicated"] = [digest for digest in (found - arrived).elements() if digest in arrived]

    rows = _rows(ledger)
    wrong["unfinished rows"] = [f"{source} -> {state}" for state, source, _, _ in rows if state != "done"]
    filed = Counter((path, digest) for path, digest in there.items() if not path.is_relative_to(inbox))
    said = Counter((destination, digest) for state, _, destination, digest in rows if state == "done")
    wrong["rows without photos"] = [str(path) for path, _ in (said - filed).elements()]
    wrong["photos without rows"] = [str(path) for path, _ in (filed - said).elements()]
    return {problem: what for problem, what in wrong.items() if what}


def _files(top: Path) -> list[Path]:
    return [path for path in top.rglob("*") if path.is_file() and not path.is_symlink()]


def _rows(ledger: Path) -> list[tuple[str, Path, Path, str]]:
    if not ledger.exists():
        return []
    with contextlib.closing(sqlite3.connect(ledger)) as connection:
        return [
            (state, Path(os.fsdecode(source)), Path(os.fsdecode(destination)), digest)
            for state, source, destination, digest in connection.execute(
                "SELECT state, source, destination, sha256 FROM photos"
            )
        ]
