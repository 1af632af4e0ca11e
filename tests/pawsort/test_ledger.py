import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

import faultstage
from pawsort import errors, ledger
from pawsort.ledger import Entry, Ledger


@pytest.fixture
def file(tmp_path):
    return tmp_path / "state" / "ledger.sqlite3"


@pytest.fixture
def book(file):
    with Ledger(file) as book:
        yield book


def entry(name="a.jpg", **fields):
    usual = {
        "event": "sorted",
        "source": Path("/in") / name,
        "destination": Path("/out/cats") / name,
        "device": 1,
        "inode": 2,
        "bytes": 3,
        "mtime_ns": 4,
        "sha256": "ab" * 32,
        "label": "cats",
    }
    return Entry(**{**usual, **fields})


def file_all(book, *entries):
    ids = book.begin(entries)
    book.finish([(row_id, 1.5) for row_id in ids])
    return ids


def test_everything_that_is_written_is_read_back(book):
    written = entry(
        best="cats",
        confidence=0.75,
        probabilities={"cats": 0.75, "köter": 0.25},
        model="m",
        reason="because",
        width=640,
        height=480,
        decode_ms=1.0,
        infer_ms=2.0,
    )
    before = time.time()
    book.begin([written])
    (row,) = book.intents()
    assert {name: getattr(row, name) for name in written.__dict__} == written.__dict__
    assert (row.state, row.latency_ms, row.filed_at) == ("intent", None, None)
    assert before <= row.decided_at <= time.time()


def test_a_row_is_an_intent_until_it_is_finished(book):
    (row_id,) = book.begin([entry()])
    assert [row.id for row in book.intents()] == [row_id]
    assert book.last(10) == []
    book.finish([(row_id, 12.5)])
    assert book.intents() == []
    (row,) = book.last(10)
    assert (row.state, row.latency_ms) == ("done", 12.5)
    assert row.filed_at >= row.decided_at


def test_ids_come_in_the_order_of_the_entries(book):
    ids = book.begin([entry(f"{number}.jpg") for number in range(5)])
    names = {row.id: row.source.name for row in book.intents()}
    assert [names[row_id] for row_id in ids] == [f"{number}.jpg" for number in range(5)]


def test_an_intent_is_redirected(book):
    (row_id,) = book.begin([entry()])
    book.redirect(row_id, Path("/out/cats/a-1.jpg"))
    assert book.intents()[0].destination == Path("/out/cats/a-1.jpg")


def test_what_is_done_is_not_redirected_forgotten_or_marked(book):
    (row_id,) = file_all(book, entry())
    book.redirect(row_id, Path("/elsewhere"))
    book.forget([row_id])
    book.mark_vanished([row_id])
    book.finish([(row_id, 99.0)])
    (row,) = book.last(1)
    assert (row.state, row.destination, row.latency_ms) == ("done", Path("/out/cats/a.jpg"), 1.5)


def test_a_forgotten_rows_id_is_never_used_again(book):
    (first,) = book.begin([entry()])
    book.forget([first])
    assert book.intents() == []
    (second,) = book.begin([entry()])
    assert second > first


def test_vanished_is_said_and_not_counted_as_done(book):
    book.mark_vanished(book.begin([entry()]))
    assert book.find(name=b"a.jpg")[0].state == "vanished"
    assert book.counts().total == 0


def test_a_batch_is_begun_whole_or_not_at_all(book):
    with pytest.raises(errors.LedgerError):
        book.begin([entry("good.jpg"), entry("bad.jpg", event=None)])
    assert book.intents() == []
    assert len(book.begin([entry()])) == 1


@pytest.mark.parametrize("name", [b"caf\xe9.jpg", b"new\nline", b"\x01\xff\xfe", "Bär 🐻.jpg".encode()])
def test_names_of_any_bytes_come_back_byte_for_byte(book, name):
    path = Path(os.fsdecode(b"/in/" + name))
    file_all(book, entry(source=path, destination=path))
    for found in (book.find(name=name), book.find(path=path)):
        assert [os.fsencode(row.source) for row in found] == [b"/in/" + name]
        assert [os.fsencode(row.destination) for row in found] == [b"/in/" + name]


@pytest.mark.parametrize("number", [0, 2**63 - 1, 2**63, 2**64 - 1])
def test_inodes_and_devices_of_64_bits_come_back(book, number):
    book.begin([entry(inode=number, device=number)])
    assert (book.intents()[0].inode, book.intents()[0].device) == (number, number)


def test_rows_are_found_by_hash_prefix_path_and_name_newest_first(book):
    first, second, third = file_all(
        book,
        entry("a.jpg", sha256="abcd" + 60 * "0"),
        entry("b.jpg", sha256="abff" + 60 * "0"),
        entry("a.jpg", sha256="cc" + 62 * "0", destination=Path("/out/dogs/a-1.jpg")),
    )

    def found(**what):
        return [row.id for row in book.find(**what)]

    assert found(sha256="ab") == [second, first]
    assert found(sha256="abff") == [second]
    assert found(sha256="abff" + 60 * "0") == [second]
    assert found(sha256="b") == []
    assert found(name=b"a.jpg") == [third, first]
    assert found(path=Path("/out/dogs/a-1.jpg")) == [third]
    assert found(path=Path("/in/b.jpg")) == [second]
    assert found(path=Path("/in/b.jpg"), name=b"a.jpg") == [third, second, first]


def test_the_last_rows_are_the_newest_that_were_filed(book):
    ids = file_all(book, *(entry(f"{number}.jpg") for number in range(4)))
    book.begin([entry("unfinished.jpg")])
    assert [row.id for row in book.last(2)] == [ids[3], ids[2]]


def test_photos_are_counted_by_outcome_and_label(book):
    file_all(
        book,
        entry(),
        entry(),
        entry(label="dogs"),
        entry(event="review", label=None),
        entry(event="rejected", label=None),
    )
    counts = book.counts()
    assert (counts.sorted, counts.review, counts.rejected, counts.total) == (3, 1, 1, 5)
    assert counts.by_label == {"cats": 2, "dogs": 1}
    assert book.counts(since=time.time() + 1).total == 0


def test_rows_outlive_the_process_that_wrote_them_however_it_ends(file):
    script = (
        "import os, sys; from pathlib import Path; from pawsort.ledger import *\n"
        "book = Ledger(Path(sys.argv[1]))\n"
        "e = dict(event='sorted', destination=Path('/b'), device=1, inode=1, bytes=1, mtime_ns=1)\n"
        "book.begin([Entry(source=Path(f'/{n}'), **e) for n in range(3)])\n"
        "os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(file)], check=False).returncode == -9
    with Ledger(file) as book:
        assert [row.source for row in book.intents()] == [Path("/0"), Path("/1"), Path("/2")]


def test_every_commit_reaches_the_disk(book):
    # NORMAL lost committed rows in power cuts.
    assert book._connection.execute("PRAGMA synchronous").fetchone()[0] == 2
    assert book._connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"


def test_readers_read_while_the_writer_writes_and_cannot_write_themselves(file, book):
    file_all(book, entry())
    with Ledger(file, read_only=True) as reader:
        assert reader.counts().total == 1
        file_all(book, entry())
        assert reader.counts().total == 2
        with pytest.raises(errors.LedgerError, match="readonly"):
            reader.begin([entry()])


def test_reading_makes_no_ledger_where_there_is_none(file):
    with pytest.raises(errors.LedgerError, match=r"ledger\.sqlite3: the ledger cannot be used"):
        Ledger(file, read_only=True)
    assert not file.exists()


def test_a_ledger_whose_path_is_not_utf_8_works(tmp_path):
    file = tmp_path / os.fsdecode(b"st\xe4te") / "ledger.sqlite3"
    with Ledger(file) as book:
        file_all(book, entry())
        with Ledger(file, read_only=True) as reader:
            assert reader.counts().total == 1
    assert file.exists()


def test_a_ledger_of_a_newer_pawsort_is_refused_and_left_alone(file):
    Ledger(file).close()
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    before = file.read_bytes()
    for read_only in (False, True):
        with pytest.raises(
            errors.LedgerError, match="schema version 2, this pawsort knows 1; install a newer"
        ):
            Ledger(file, read_only=read_only)
    assert file.read_bytes() == before


def test_opening_again_keeps_what_is_there(file):
    with Ledger(file) as book:
        file_all(book, entry())
    with Ledger(file) as book:
        assert book.counts().total == 1


def test_a_damaged_file_is_a_ledger_error(file):
    file.parent.mkdir()
    file.write_bytes(b"this is no database" * 100)
    with pytest.raises(errors.LedgerError, match="not a database"):
        Ledger(file)


def test_a_folder_that_cannot_be_made_is_a_ledger_error(tmp_path):
    (tmp_path / "state").write_text("a file")
    with pytest.raises(errors.LedgerError, match=r"File exists|Not a directory"):
        Ledger(tmp_path / "state" / "ledger.sqlite3")


def test_another_writer_that_does_not_end_is_a_ledger_error(file, monkeypatch):
    monkeypatch.setattr(ledger, "BUSY_TIMEOUT", 0.05)
    with Ledger(file) as book:
        other = sqlite3.connect(file, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(errors.LedgerError, match="locked"):
            book.begin([entry()])
        other.close()
        assert len(book.begin([entry()])) == 1


def write_on(book):
    """Begin far more than fits on a small disk."""
    for _ in range(100):
        book.begin([entry(f"{number}.jpg", reason="x" * 500) for number in range(50)])


@pytest.mark.faults
def test_a_full_disk_is_a_ledger_error_and_work_goes_on_after_the_cure(small_disk):
    with Ledger(small_disk / "ledger.sqlite3") as book:
        file_all(book, entry("before.jpg"))
        ballast = faultstage.fill(small_disk)
        with pytest.raises(errors.LedgerError, match=r"full|disk"):
            write_on(book)
        begun = len(book.intents())
        assert begun % 50 == 0
        ballast.unlink()
        file_all(book, entry("after.jpg"))
        assert book.find(name=b"before.jpg")[0].state == "done"
        assert book.find(name=b"after.jpg")[0].state == "done"
        assert len(book.intents()) == begun
