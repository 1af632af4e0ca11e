"""Where the label of every photo below `sorted` comes from: from a person, or from the daemon's own guess.

Told from the folders and the ledger, by content, so that a renamed photo is still the one that the daemon filed:

placed      a person put it there; the daemon never saw it
corrected   it lies in another class folder than the daemon chose
confirmed   a person took it out of review into a class folder, or said `pawsort confirm` where it still lies
predicted   it is still where the daemon put it, and nobody has said a word

A person's word is for good. What a survey sees as corrected or confirmed is recorded (`record`), beside what
`pawsort confirm` records; when the same bytes come through the inbox again and the daemon files them as it did the
first time, the word still stands. It ends with the person's next word, that is the next move by hand.

The same bytes may lie in several folders. Then a person's word counts and the daemon's does not; two people's words
that contradict each other leave the photo out. A photo that lies nowhere below `sorted` is in no survey: deleted by
its owner, it is forgotten.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pawsort.ledger import Ledger
from pawsort.placements import DAY, Placement, placements
from trainer import dataset, reading
from trainer.dataset import Origin

# Rows in these states say that the daemon has put the photo there, or is about to.
_AUTOMATIC = {"done", "intent", "undoing"}
DIGESTS = "digests.json"


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Photos of one content and their label."""

    path: Path  # one of the files
    label: str
    origin: Origin
    sha256: str
    at: float  # when the daemon put it there, seconds since the epoch; 0 where it did not


@dataclass(frozen=True, kw_only=True)
class Survey:
    """Every photo below `sorted`, by content and in its order, and what could not be used."""

    photos: tuple[Labelled, ...]
    contradicted: tuple[tuple[Path, ...], ...]  # same bytes in two class folders, both put there by people
    overruled: tuple[
        Labelled, ...
    ]  # lies where the daemon put it, against a person's earlier word, which counts
    news: Mapping[str, str]  # sha256 -> label: people's words that are not recorded yet
    unreadable: tuple[Path, ...]

    def labelled_by_people(self) -> list[Labelled]:
        """Without what the daemon guessed."""
        return [photo for photo in self.photos if photo.origin is not Origin.PREDICTED]

    def trusted(self, after_days: float | None, now: float) -> list[Labelled]:
        """Guesses that nobody has touched for so many days; none for None."""
        if after_days is None:
            return []
        return [
            photo
            for photo in self.photos
            if photo.origin is Origin.PREDICTED and now - photo.at >= after_days * DAY
        ]


class _File(NamedTuple):
    path: Path
    label: str
    status: os.stat_result

    @property
    def identity(self) -> tuple[int, int, int, int]:
        return self.status.st_dev, self.status.st_ino, self.status.st_size, self.status.st_mtime_ns


class _Word(NamedTuple):
    """What one file says about its content."""

    file: _File
    label: str
    origin: Origin
    at: float
    overruled: bool = False


def survey(sorted_: Path, ledger: Ledger | None, state: Path) -> Survey:
    """Look through the class folders below `sorted_`. Raises LedgerError.

    `ledger` is None where the daemon has not sorted anything yet: then people have placed all there is.
    `state` is the folder in which the hashes of files are kept, so that the next survey need not read them.
    """
    # The files first: the ledger is told of a photo before it is moved, so none of these can lack its row.
    files = list(_files(sorted_))
    rows = placements(ledger) if ledger else []
    words = ledger.confirmations() if ledger else {}
    digests = _Digests(state / DIGESTS, rows)
    by_content: dict[str, list[_File]] = defaultdict(list)
    unreadable = []
    for file in files:
        digest = digests.of(file)
        if digest is None:
            unreadable.append(file.path)
        else:
            by_content[digest].append(file)
    digests.save()
    rows_of: dict[str, list[Placement]] = defaultdict(list)
    for row in rows:
        rows_of[row.sha256].append(row)

    photos: list[Labelled] = []
    contradicted: list[tuple[Path, ...]] = []
    overruled: list[Labelled] = []
    news: dict[str, str] = {}
    for digest in sorted(by_content):
        spoken = _read(by_content[digest], rows_of.get(digest, []), words.get(digest))
        people = [word for word in spoken if word.origin is not Origin.PREDICTED]
        counting = people or spoken
        if len({word.label for word in counting}) > 1:
            if people:
                contradicted.append(tuple(word.file.path for word in people))
            continue
        chosen = min(counting, key=lambda word: (word.overruled, word.origin))
        photo = Labelled(
            path=chosen.file.path, label=chosen.label, origin=chosen.origin, sha256=digest, at=chosen.at
        )
        photos.append(photo)
        if all(word.overruled for word in counting):
            overruled.append(photo)
        if photo.origin in {Origin.CORRECTED, Origin.CONFIRMED} and (
            digest not in words or _normal(words[digest][0]) != photo.label
        ):
            news[digest] = photo.label
    return Survey(
        photos=tuple(photos),
        contradicted=tuple(contradicted),
        overruled=tuple(overruled),
        news=news,
        unreadable=tuple(unreadable),
    )


def record(ledger: Ledger, found: Survey) -> None:
    """Write down the words of people that are not recorded yet, so that they hold from now on. Raises LedgerError."""
    if found.news:
        ledger.confirm(found.news)


def _read(files: Sequence[_File], rows: Sequence[Placement], word: tuple[str, float] | None) -> list[_Word]:
    """What each of the files of one content says, given all rows about it (oldest first) and the recorded word."""
    if word is not None:
        word = _normal(word[0]), word[1]
    return [_word(file, row, word) for file, row in zip(files, _rows_of_files(files, rows), strict=True)]


def _word(file: _File, row: Placement | None, word: tuple[str, float] | None) -> _Word:
    here = file.label
    confirmed = word is not None and word[0] == here
    if row is None:
        return _Word(file, here, Origin.CONFIRMED if confirmed else Origin.PLACED, 0.0)
    chosen = None if row.label is None else _normal(row.label)
    if chosen not in {here, None}:
        return _Word(file, here, Origin.CORRECTED, row.at)
    if confirmed or row.event != "sorted" or row.state not in _AUTOMATIC:
        return _Word(file, here, Origin.CONFIRMED, row.at)
    if word is None:
        return _Word(file, here, Origin.PREDICTED, row.at)
    # It lies where the daemon wanted it, and a person's word says otherwise. Renaming sets a file's change time: if
    # that came after the word, and after the daemon's own move, then a person has put it back here.
    if file.status.st_ctime > word[1] > row.at:
        return _Word(file, here, Origin.CONFIRMED, row.at)
    return _Word(file, word[0], Origin.CORRECTED, row.at, overruled=True)


def _rows_of_files(files: Sequence[_File], rows: Sequence[Placement]) -> list[Placement | None]:
    """For each file of one content the row that filed it: by path, by inode, else the newest that no other file has.

    A file beyond the daemon's is a copy that a person made; it is held against the newest row.
    """
    latest = list(reversed(rows))
    standing = [row for row in latest if row.state in _AUTOMATIC]
    found: dict[Path, Placement] = {}

    def claim(matches: object) -> None:
        for file in files:
            if file.path not in found:
                free = (row for row in standing if row not in found.values())
                row = next((row for row in free if matches(file, row)), None)  # type: ignore[operator]
                if row is not None:
                    found[file.path] = row

    claim(lambda file, row: row.destination == file.path)
    claim(lambda file, row: (row.device, row.inode) == file.identity[:2])
    claim(lambda _file, _row: True)
    newest = next(iter(standing or latest), None)
    return [found.get(file.path, newest) for file in files]


def _files(sorted_: Path) -> Iterator[_File]:
    if not sorted_.is_dir():
        return
    for folder in sorted(sorted_.iterdir()):
        if not folder.is_dir() or folder.name.startswith("."):
            continue
        for path in dataset.files_below(folder):
            try:
                status = path.stat()
            except OSError:
                continue  # moved away just now
            if stat.S_ISREG(status.st_mode):
                yield _File(path, _normal(folder.name), status)


def _normal(label: str) -> str:
    """Names in the form that dataset.find gives labels in."""
    return unicodedata.normalize("NFC", label)


class _Digests:
    """Hashes of files, known by inode, size and time from the ledger or from the last survey, else computed."""

    def __init__(self, file: Path, rows: Sequence[Placement]) -> None:
        self._file = file
        self._known: dict[tuple[int, ...], str] = {}
        self._seen: dict[tuple[int, ...], str] = {}
        try:
            for *identity, digest in json.loads(file.read_bytes()):
                self._known[tuple(identity)] = digest
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError):
            self._known.clear()  # only a shortcut: what cannot be read is computed again
        for row in rows:
            self._known[row.device, row.inode, row.bytes, row.mtime_ns] = row.sha256

    def of(self, file: _File) -> str | None:
        """SHA-256 of the file; None when it cannot be read, or is another one by now."""
        digest = self._known.get(file.identity)
        if digest is None:
            try:
                with os.fdopen(reading.open_regular(file.path), "rb") as stream:
                    if _File(file.path, file.label, os.fstat(stream.fileno())).identity != file.identity:
                        return None
                    digest = hashlib.file_digest(stream, "sha256").hexdigest()
            except OSError:
                return None
        self._seen[file.identity] = digest
        return digest

    def save(self) -> None:
        """Keep what this survey saw, for the next."""
        if self._seen.items() <= self._known.items() and self._file.exists():
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._file.with_name(f".{self._file.name}.part")
        temporary.write_text(
            json.dumps([[*identity, digest] for identity, digest in self._seen.items()]), encoding="utf-8"
        )
        temporary.replace(self._file)
