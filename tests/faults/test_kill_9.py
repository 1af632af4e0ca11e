"""kill -9 at any moment, again and again, while photos keep coming; then a count."""

import contextlib
import hashlib
import itertools
import random
import sqlite3
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import drawn
import stocktaking
from harness import Running
from pawsort import ledger

pytestmark = pytest.mark.faults

BROKEN = [sys.executable, str(Path(__file__).with_name("broken.py"))]


def test_a_backlog_survives_kill_9_at_any_moment_while_photos_keep_coming(sandbox, full):
    box = sandbox(threshold=0.0)
    backlog, kills = (2000, 50) if full else (200, 3)
    with photos_arriving(box.inbox, backlog) as arrived:
        moments = [kill_sometime(box, box.command("run"), random.Random(number)) for number in range(kills)]
    box.call("run", "--once", check=True, timeout=600)
    print(f"{kills} kills in {arrived.total()} photos; {dict(Counter(moments))}")
    assert (wrong(box, arrived), left(box.inbox)) == ({}, [])
    assert set(moments) - {"before the first photo"}


def test_a_hurried_filing_is_caught(sandbox, full):
    box = sandbox(threshold=0.0)
    with photos_arriving(box.inbox, 1000 if full else 100) as arrived:
        for number in range(10 if full else 2):
            kill_sometime(box, [*BROKEN, *box.command("run")[3:]], random.Random(number))
    last = Running([*BROKEN, *box.command("run", "--once")[3:]], box.folder)
    last.process.wait()
    last.drain()
    caught = {problem: len(what) for problem, what in wrong(box, arrived).items()}
    print(caught)
    assert caught["lost"]


def kill_sometime(box, command: list[str], chance: random.Random) -> str:
    """Start it, kill it at any moment, and say which that was."""
    daemon = Running(command, box.folder)
    stage = chance.random()
    if stage < 0.2:  # at its start, which includes the recovery from the last kill
        threading.Event().wait(chance.uniform(0.2, 1.0))
    else:
        daemon.wait_for("ready" if stage < 0.4 else "sorted", timeout=120)
        threading.Event().wait(chance.uniform(0.0, 0.3))
    daemon.process.kill()
    daemon.process.wait()
    daemon.drain()
    if not (box.folder / "state" / ledger.FILE).exists():
        return "before the first photo"
    with contextlib.closing(sqlite3.connect(box.folder / "state" / ledger.FILE)) as book:
        half_done = (
            _exists(book) and book.execute("SELECT count(*) FROM photos WHERE state = 'intent'").fetchone()[0]
        )
    if half_done:
        return "in the middle of a batch"
    return "between two batches" if daemon.photos else "before the first photo"


def _exists(book: sqlite3.Connection) -> bool:
    return book.execute("SELECT count(*) FROM sqlite_master WHERE name = 'photos'").fetchone()[0] == 1


def wrong(box, arrived: Counter[str]) -> dict[str, list[str]]:
    folders = (box.sorted, box.review, box.rejected)
    return stocktaking.take(box.inbox, folders, box.folder / "state" / ledger.FILE, arrived)


def left(inbox: Path) -> list[Path]:
    return [path for path in inbox.rglob("*") if path.is_file()]


@contextlib.contextmanager
def photos_arriving(inbox: Path, backlog: int) -> Iterator[Counter[str]]:
    """A backlog of photos, and more that arrive until the end; each name comes seven times. Counts their SHA-256."""
    arrived: Counter[str] = Counter()
    numbers = itertools.count()
    stopped = threading.Event()
    picture = drawn.draw("circles", 0, 64)

    def arrive() -> None:
        number = next(numbers)
        picture[0, 0] = list(number.to_bytes(3, "big"))
        data = drawn.encode(picture, ".png")  # lossless: no two photos are of the same bytes
        folder = inbox / f"{number % 7}"
        folder.mkdir(exist_ok=True)
        part = folder / f"{number}.part"
        part.write_bytes(data)
        arrived[hashlib.sha256(data).hexdigest()] += 1
        part.rename(folder / f"photo-{number // 7}.png")

    def keep_coming() -> None:
        while not stopped.wait(0.02):
            arrive()

    for _ in range(backlog):
        arrive()
    thread = threading.Thread(target=keep_coming)
    thread.start()
    try:
        yield arrived
    finally:
        stopped.set()
        thread.join()
