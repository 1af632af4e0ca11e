import hashlib
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import faultstage
from daemon.filing import Filing, Folders, Verdict
from daemon.intake import Identity
from pawsort.ledger import Ledger


@pytest.fixture
def place(tmp_path):
    """Folders, a ledger and filing between them, on the disk."""
    with a_place(tmp_path, tmp_path) as place:
        yield place


@pytest.fixture
def across(tmp_path, other_disk):
    """The same with the inbox on another file system than the rest."""
    with a_place(other_disk, tmp_path) as place:
        yield place


@pytest.fixture
def other_disk(tmp_path):
    """A folder on another file system than tmp_path."""
    with faultstage.another_file_system(tmp_path) as folder:
        yield folder


class a_place:  # noqa: N801  used like a function
    def __init__(self, near: Path, far: Path) -> None:
        self._near, self._far = near, far

    def __enter__(self):
        folders = Folders(
            sorted=self._far / "sorted", review=self._far / "review", rejected=self._far / "rejected"
        )
        inbox = self._near / "inbox"
        for folder in (inbox, folders.sorted, folders.review, folders.rejected):
            folder.mkdir(parents=True)
        self._ledger = Ledger(self._far / "state" / "ledger.sqlite3")
        return SimpleNamespace(
            root=self._far,
            inbox=inbox,
            folders=folders,
            ledger=self._ledger,
            filing=Filing(inbox, folders, self._ledger),
        )

    def __exit__(self, *_):
        self._ledger.close()


@pytest.fixture
def arrive(place):
    """Puts a photo into the inbox and gives the verdict about it."""
    return arriver(place)


@pytest.fixture
def arrive_across(across):
    return arriver(across)


def arriver(place):
    def arrive(name="a.jpg", data=None, *, event="sorted", label="cats", **fields):
        path = place.inbox / name
        data = os.fsencode(name) * 100 if data is None else data
        path.write_bytes(data)
        return judge(path, event=event, label=label if event == "sorted" else None, **fields)

    return arrive


def judge(path, *, event="sorted", label="cats", **fields):
    return Verdict(
        path=path,
        identity=Identity.of(os.lstat(path)),
        noticed_at=time.monotonic(),
        event=event,
        label=label,
        **{"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), **fields},
    )


@pytest.fixture
def verdict_on():
    """Gives the verdict about a file that lies somewhere."""
    return judge


@pytest.fixture
def tree():
    """Gives all files below a folder as {relative path: bytes}, hidden ones too."""

    def tree(folder):
        return {
            os.fsencode(path.relative_to(folder)).decode("utf-8", "backslashreplace"): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not path.is_symlink()
        }

    return tree
