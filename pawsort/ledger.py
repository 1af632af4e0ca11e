"""The ledger: what was decided about every photo and where it is. The daemon writes it, the trainer reads it.

The one thing that the trainer writes is a person's word that it noticed: see `Ledger.confirm`.

One SQLite file. A row is written with state "intent" before its photo is moved and completed afterwards, so that after
a crash the rows in state "intent" are exactly the moves that may be half done (see daemon.recovery).

WAL with synchronous=FULL: with NORMAL, committed rows were lost in 2 of 6 power cuts staged on ext4 and XFS.
Paths are stored as the bytes that the file system knows, for not every name is UTF-8.

Schema history
1   first version
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pawsort import errors

FILE = "ledger.sqlite3"
SCHEMA_VERSION = 1
BUSY_TIMEOUT = 5.0  # seconds to wait for another writer before giving up

Event = Literal["sorted", "review", "rejected"]
# intent: being filed; done: filed; vanished: gone when a crash was cleared up;
# undoing: being put back into the inbox; undone: put back
State = Literal["intent", "done", "vanished", "undoing", "undone"]

_SCHEMA = """
CREATE TABLE photos (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used twice, also after a row was forgotten
    state         TEXT    NOT NULL,  -- see State
    event         TEXT    NOT NULL,  -- sorted, review or rejected
    name          BLOB    NOT NULL,  -- file name on arrival
    source        BLOB    NOT NULL,  -- full path on arrival
    destination   BLOB    NOT NULL,  -- full path where it is, or is going
    device        INTEGER NOT NULL,  -- identity of the file that was decoded
    inode         INTEGER NOT NULL,
    bytes         INTEGER NOT NULL,
    mtime_ns      INTEGER NOT NULL,
    sha256        TEXT,              -- of the bytes that were decoded
    label         TEXT,              -- the class it was filed under; NULL in review and rejected
    best          TEXT,              -- the likeliest class, sure or not
    confidence    REAL,
    probabilities TEXT,              -- JSON object, class -> probability
    model         TEXT,              -- the model that decided; NULL where none was asked
    reason        TEXT,              -- why it is in review or rejected
    width         INTEGER,
    height        INTEGER,
    decode_ms     REAL,
    infer_ms      REAL,
    latency_ms    REAL,              -- from the finished file to the filed one
    decided_at    REAL    NOT NULL,  -- seconds since the epoch
    filed_at      REAL
);
CREATE TABLE confirmations (            -- a person's word: a label found right, or put right
    sha256        TEXT    PRIMARY KEY,
    label         TEXT    NOT NULL,
    confirmed_at  REAL    NOT NULL
);
CREATE INDEX photos_intent ON photos (id) WHERE state = 'intent';
CREATE INDEX photos_undoing ON photos (id) WHERE state = 'undoing';
CREATE INDEX photos_sha256 ON photos (sha256);
CREATE INDEX photos_filed_at ON photos (filed_at);
CREATE INDEX photos_destination ON photos (destination);
CREATE INDEX photos_event ON photos (event) WHERE state = 'done';
"""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A photo about to be filed: one row in the making. Fields as in the schema above."""

    event: Event
    source: Path
    destination: Path
    device: int
    inode: int
    bytes: int
    mtime_ns: int
    sha256: str | None = None
    label: str | None = None
    best: str | None = None
    confidence: float | None = None
    probabilities: Mapping[str, float] | None = None
    model: str | None = None
    reason: str | None = None
    width: int | None = None
    height: int | None = None
    decode_ms: float | None = None
    infer_ms: float | None = None


@dataclass(frozen=True, kw_only=True)
class Row(Entry):
    """A row as it stands in the ledger."""

    id: int
    state: State
    latency_ms: float | None
    decided_at: float
    filed_at: float | None


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many photos were filed, by outcome."""

    sorted: int = 0
    review: int = 0
    rejected: int = 0
    by_label: Mapping[str, int]

    @property
    def total(self) -> int:
        """All photos filed."""
        return self.sorted + self.review + self.rejected


class Ledger:
    """An open ledger. One process writes; any number may read at the same time.

    Every method raises LedgerError when the file cannot be used: disk full, read-only, damaged, locked for too long.
    Those are faults of the machine.
    """

    def __init__(self, file: Path, *, read_only: bool = False) -> None:
        self.file = file
        with _translated(file):
            if read_only:
                uri = f"{file.absolute().as_uri()}?mode=ro"
                self._connection = sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT, isolation_level=None)
            else:
                file.parent.mkdir(parents=True, exist_ok=True)
                self._connection = sqlite3.connect(file, timeout=BUSY_TIMEOUT, isolation_level=None)
            try:
                self._connection.row_factory = sqlite3.Row
                if not read_only:
                    self._connection.execute("PRAGMA journal_mode = WAL")
                    self._connection.execute("PRAGMA synchronous = FULL")
                self._set_up(read_only=read_only)
            except BaseException:
                self._connection.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. SQLite folds the write-ahead log in when the last connection closes."""
        self._connection.close()

    def begin(self, entries: Sequence[Entry]) -> list[int]:
        """Write intents in one durable commit, before anything is moved. Returns their ids, in order."""
        now = time.time()
        with self._transaction() as connection:
            ids = []
            for entry in entries:
                values = _values(entry) | {"state": "intent", "decided_at": now}
                columns = ", ".join(values)
                marks = ", ".join(f":{column}" for column in values)
                cursor = connection.execute(f"INSERT INTO photos ({columns}) VALUES ({marks})", values)  # noqa: S608
                ids.append(int(cursor.lastrowid or 0))
            return ids

    def redirect(self, row_id: int, destination: Path) -> None:
        """Change where an intent is going, because its first name was taken meanwhile. Durable on return."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE photos SET destination = ? WHERE id = ? AND state = 'intent'",
                (os.fsencode(destination), row_id),
            )

    def finish(self, filed: Sequence[tuple[int, float | None]]) -> None:
        """Complete rows whose photos are in place: (id, latency in ms), in one commit."""
        now = time.time()
        with self._transaction() as connection:
            connection.executemany(
                "UPDATE photos SET state = 'done', latency_ms = ?, filed_at = ? WHERE id = ? AND state = 'intent'",
                [(latency_ms, now, row_id) for row_id, latency_ms in filed],
            )

    def forget(self, ids: Sequence[int]) -> None:
        """Remove intents whose photos were not moved after all."""
        with self._transaction() as connection:
            connection.executemany(
                "DELETE FROM photos WHERE id = ? AND state = 'intent'", [(row_id,) for row_id in ids]
            )

    def mark_vanished(self, ids: Sequence[int]) -> None:
        """Say of intents that their photo was found neither where it was nor where it was going."""
        with self._transaction() as connection:
            connection.executemany(
                "UPDATE photos SET state = 'vanished' WHERE id = ? AND state = 'intent'",
                [(row_id,) for row_id in ids],
            )

    def change_state(self, ids: Sequence[int], *, before: State, after: State) -> None:
        """Change the state of those rows that are in state `before`, in one durable commit."""
        with self._transaction() as connection:
            connection.executemany(
                "UPDATE photos SET state = ? WHERE id = ? AND state = ?",
                [(after, row_id, before) for row_id in ids],
            )

    def confirm(self, labels: Mapping[str, str]) -> None:
        """Record that these labels are a person's word: sha256 -> label. A later word replaces an earlier one.

        Both programs do this, each in a commit of its own: `pawsort confirm`, and a refresh that sees a correction.
        """
        now = time.time()
        with self._transaction() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO confirmations (sha256, label, confirmed_at) VALUES (?, ?, ?)",
                [(sha256, label, now) for sha256, label in labels.items()],
            )

    def confirmations(self) -> dict[str, tuple[str, float]]:
        """All labels that are a person's word: sha256 -> label, and when it was recorded (seconds since the epoch)."""
        found = self.read("SELECT sha256, label, confirmed_at FROM confirmations")
        return {row["sha256"]: (row["label"], row["confirmed_at"]) for row in found}

    def in_state(self, state: State) -> list[Row]:
        """Rows in this state, oldest first."""
        # Not bound as a parameter: only a literal lets SQLite use the partial indexes.
        return self._rows(f"WHERE state = '{state}' ORDER BY id")

    def intents(self) -> list[Row]:
        """Rows that were begun and not finished."""
        return self.in_state("intent")

    def filed_by(self, model: str) -> list[Row]:
        """Rows of photos that this model decided about and that were filed, newest first."""
        return self._rows("WHERE state = 'done' AND model = ? ORDER BY id DESC", [model])

    def find(
        self, *, sha256: str | None = None, path: Path | None = None, name: bytes | None = None
    ) -> list[Row]:
        """Rows by content hash (a prefix will do), by a path (of origin or goal), or by a file name; newest first."""
        clauses: list[str] = []
        values: list[object] = []
        if sha256 is not None:
            clauses.append("(sha256 >= ? AND sha256 < ?)")
            values += [sha256, sha256 + "g"]
        if path is not None:
            clauses.append("(destination = ? OR source = ?)")
            values += [os.fsencode(path), os.fsencode(path)]
        if name is not None:
            clauses.append("name = ?")
            values.append(name)
        return self._rows(f"WHERE {' OR '.join(clauses) or '1'} ORDER BY id DESC", values)

    def filed_with(self, sha256: str) -> list[Row]:
        """Rows of photos that were filed and had these very bytes, newest first."""
        return self._rows("WHERE state = 'done' AND sha256 = ? ORDER BY id DESC", [sha256])

    def last(self, number: int) -> list[Row]:
        """The last `number` rows that were filed, newest first."""
        return self._rows("WHERE state = 'done' ORDER BY id DESC LIMIT ?", [number])

    def counts(self, since: float = 0.0) -> Counts:
        """How many photos were filed at or after `since` (seconds since the epoch), by outcome and by label."""
        with _translated(self.file):
            found = self._connection.execute(
                "SELECT event, label, count(*) FROM photos "
                "WHERE state = 'done' AND filed_at >= ? GROUP BY event, label",
                (since,),
            ).fetchall()
        by_event = {"sorted": 0, "review": 0, "rejected": 0}
        by_label: dict[str, int] = {}
        for event, label, number in found:
            by_event[event] = by_event.get(event, 0) + number
            if label is not None:
                by_label[label] = number
        return Counts(**by_event, by_label=by_label)

    def read(self, query: str, values: Sequence[object] = ()) -> list[sqlite3.Row]:
        """The answer to a query of one's own, for those who want less than whole rows (see pawsort.placements)."""
        with _translated(self.file):
            return self._connection.execute(query, values).fetchall()

    def _rows(self, where: str, values: Sequence[object] = ()) -> list[Row]:
        with _translated(self.file):
            return [
                _row(found)
                for found in self._connection.execute(f"SELECT * FROM photos {where}", values)  # noqa: S608
            ]

    def _set_up(self, *, read_only: bool) -> None:
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if version == SCHEMA_VERSION:
            return
        if version == 0 and not read_only:
            with self._transaction() as connection:
                for statement in _SCHEMA.split(";\n"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            return
        message = f"{self.file}: schema version {version}, this pawsort knows {SCHEMA_VERSION}; install a newer pawsort"
        raise errors.LedgerError(message)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with _translated(self.file):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                # A failed COMMIT may have rolled back by itself already (disk full, I/O error).
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise


@contextmanager
def _translated(file: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        message = f"{file}: the ledger cannot be used: {error}"
        raise errors.LedgerError(message) from error


def _values(entry: Entry) -> dict[str, Any]:
    return {
        "event": entry.event,
        "name": os.fsencode(entry.source.name),
        "source": os.fsencode(entry.source),
        "destination": os.fsencode(entry.destination),
        "device": _signed(entry.device),
        "inode": _signed(entry.inode),
        "bytes": entry.bytes,
        "mtime_ns": entry.mtime_ns,
        "sha256": entry.sha256,
        "label": entry.label,
        "best": entry.best,
        "confidence": entry.confidence,
        "probabilities": None
        if entry.probabilities is None
        else json.dumps(entry.probabilities, ensure_ascii=False),
        "model": entry.model,
        "reason": entry.reason,
        "width": entry.width,
        "height": entry.height,
        "decode_ms": entry.decode_ms,
        "infer_ms": entry.infer_ms,
    }


def _row(found: sqlite3.Row) -> Row:
    fields = dict(found)
    del fields["name"]
    fields["source"] = Path(os.fsdecode(fields["source"]))
    fields["destination"] = Path(os.fsdecode(fields["destination"]))
    fields["device"] = _unsigned(fields["device"])
    fields["inode"] = _unsigned(fields["inode"])
    fields["probabilities"] = None if fields["probabilities"] is None else json.loads(fields["probabilities"])
    return Row(**fields)


def _signed(number: int) -> int:
    """A 64-bit number as SQLite stores one: some file systems number inodes above 2**63."""
    return number - 2**64 if number >= 2**63 else number


def _unsigned(number: int) -> int:
    return number + 2**64 if number < 0 else number
