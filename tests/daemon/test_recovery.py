"""The recovery table, row by row: what a crash left, and what is made of it."""

import os
import shutil

import pytest

from daemon import filing, moving, recovery
from pawsort.ledger import Entry

PHOTO = b"photo" * 1000


@pytest.fixture
def begun(place):
    """A row whose photo is about to be moved: its source in the inbox, nothing at its destination."""
    return begin(place)


@pytest.fixture
def begun_across(across):
    return begin(across)


class begin:  # noqa: N801  makes the state, and is the state
    def __init__(self, place, *, data=PHOTO, known_hash=True, **fields):
        self.ledger, self.place = place.ledger, place
        self.source = place.inbox / "a.jpg"
        self.destination = place.folders.sorted / "cats" / "a.jpg"
        if fields.get("event") == "rejected":
            self.destination = place.folders.rejected / "a.jpg"
        self.destination.parent.mkdir(exist_ok=True)
        self.source.write_bytes(data)
        status = os.lstat(self.source)
        entry = Entry(
            **{"event": "sorted", "label": "cats", **fields},
            source=self.source,
            destination=self.destination,
            device=status.st_dev,
            inode=status.st_ino,
            bytes=status.st_size,
            mtime_ns=status.st_mtime_ns,
            sha256=moving.hash_file(self.source) if known_hash else None,
        )
        (self.id,) = self.ledger.begin([entry])

    def recover(self):
        recovered = recovery.recover(self.ledger)
        # Whatever was found: nothing is left to clear up, and a second run finds nothing.
        assert self.ledger.intents() == []
        assert recovery.recover(self.ledger) == recovery.Recovered()
        return {
            name: [row.id for row in rows] for name, rows in recovered.__dict__.items() if rows
        }, self.ledger.find(name=b"a.jpg")

    def files(self):
        """Where photos are, hidden files included."""
        return {
            str(path.relative_to(root)): path.read_bytes()
            for root in (self.place.inbox, self.place.folders.sorted, self.place.folders.rejected)
            for path in root.rglob("*")
            if path.is_file()
        }


def test_source_only_the_row_is_forgotten_and_the_photo_sorted_anew(begun):
    done, rows = begun.recover()
    assert done == {"taken_back": [begun.id]}
    assert rows == []
    assert begun.files() == {"a.jpg": PHOTO}
    assert begun.source.exists()


def test_destination_only_with_the_same_inode_is_done(begun):
    begun.source.rename(begun.destination)
    done, (row,) = begun.recover()
    assert done == {"finished": [begun.id]}
    assert (row.state, row.destination, row.filed_at is not None) == ("done", begun.destination, True)
    assert begun.files() == {"cats/a.jpg": PHOTO}


def test_destination_only_with_the_same_hash_is_done(begun_across):
    begun = begun_across
    shutil.copyfile(begun.source, begun.destination)
    begun.source.unlink()
    done, (row,) = begun.recover()
    assert done == {"finished": [begun.id]}
    assert row.state == "done"


def test_both_with_the_same_inode_the_source_is_unlinked(begun):
    os.link(begun.source, begun.destination)
    done, (row,) = begun.recover()
    assert done == {"finished": [begun.id]}
    assert row.state == "done"
    assert begun.files() == {"cats/a.jpg": PHOTO}


def test_both_with_the_same_hash_the_destination_is_synced_before_the_source_goes(begun_across, monkeypatch):
    begun = begun_across
    shutil.copyfile(begun.source, begun.destination)
    synced = []
    fsync = os.fsync

    def watch(descriptor):
        synced.append((os.readlink(f"/proc/self/fd/{descriptor}"), begun.source.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    done, _ = begun.recover()
    assert done == {"finished": [begun.id]}
    assert begun.files() == {"cats/a.jpg": PHOTO}
    assert (str(begun.destination), True) in synced
    assert (str(begun.destination.parent), True) in synced


def test_both_with_another_hash_the_name_was_taken_and_nobodys_file_is_touched(begun):
    begun.destination.write_bytes(b"theirs")
    done, rows = begun.recover()
    assert done == {"taken_back": [begun.id]}
    assert rows == []
    assert begun.files() == {"a.jpg": PHOTO, "cats/a.jpg": b"theirs"}


def test_an_empty_placeholder_is_removed_and_the_photo_sorted_anew(begun):
    begun.destination.write_bytes(b"")
    done, _ = begun.recover()
    assert done == {"taken_back": [begun.id]}
    assert begun.files() == {"a.jpg": PHOTO}


def test_an_empty_file_at_the_destination_is_not_ours_when_the_source_is_not(begun):
    begun.source.unlink()
    begun.destination.write_bytes(b"")
    done, _ = begun.recover()
    assert done == {"vanished": [begun.id]}
    assert begun.destination.exists()


def test_a_stale_copy_of_ours_is_removed_and_others_stay(begun):
    ours = filing.part_file(begun.destination.parent, begun.id)
    theirs = filing.part_file(begun.destination.parent, begun.id + 1)
    for part in (ours, theirs):
        part.write_bytes(b"half a pho")
    done, _ = begun.recover()
    assert done == {"taken_back": [begun.id]}
    assert not ours.exists()
    assert theirs.exists()


def test_neither_is_said_to_have_vanished_and_never_to_be_done(begun):
    begun.source.unlink()
    done, (row,) = begun.recover()
    assert done == {"vanished": [begun.id]}
    assert row.state == "vanished"


def test_neither_when_the_destination_is_somebody_elses(begun):
    begun.source.unlink()
    begun.destination.write_bytes(b"theirs")
    done, _ = begun.recover()
    assert done == {"vanished": [begun.id]}
    assert begun.files() == {"cats/a.jpg": b"theirs"}


def test_whole_folders_gone_is_vanished(begun):
    shutil.rmtree(begun.source.parent)
    shutil.rmtree(begun.destination.parent)
    begun.destination.parent.write_text("a file where the folder was")
    done, _ = begun.recover()
    assert done == {"vanished": [begun.id]}


@pytest.mark.parametrize("what", ["fifo", "link", "folder"])
def test_what_is_no_regular_file_is_never_taken_for_the_photo(begun, what):
    for path in (begun.source, begun.destination):
        if path.exists():
            path.unlink()
        {"fifo": os.mkfifo, "link": lambda p: p.symlink_to("/etc/passwd"), "folder": os.mkdir}[what](path)
    done, _ = begun.recover()
    assert done == {"vanished": [begun.id]}


def test_a_source_that_was_written_to_since_is_sorted_anew(begun):
    begun.source.write_bytes(b"longer than it was" * 1000)
    done, _ = begun.recover()
    assert done == {"taken_back": [begun.id]}


def test_a_new_photo_of_the_same_name_does_not_disturb_what_was_moved(begun):
    begun.source.rename(begun.destination)
    begun.source.write_bytes(b"another photo")
    done, _ = begun.recover()
    assert done == {"finished": [begun.id]}
    assert begun.files() == {"a.jpg": b"another photo", "cats/a.jpg": PHOTO}


def test_a_new_photo_of_the_same_name_and_bytes_is_not_deleted(begun):
    begun.source.rename(begun.destination)
    begun.source.write_bytes(PHOTO)
    done, _ = begun.recover()
    assert done == {"finished": [begun.id]}
    assert begun.files() == {"a.jpg": PHOTO, "cats/a.jpg": PHOTO}


@pytest.mark.parametrize("unlinked", [False, True])
def test_a_photo_that_was_never_hashed_is_found_after_a_move_across(across, unlinked):
    # The decoder died on it, so that no hash is known; the move across file systems keeps size and time.
    begun = begin(across, known_hash=False, event="rejected", label=None, reason="corrupt")
    shutil.copy2(begun.source, begun.destination)
    if unlinked:
        begun.source.unlink()
    done, _ = begun.recover()
    assert done == {"finished": [begun.id]}
    assert not begun.source.exists()
    assert begun.destination.read_bytes() == PHOTO


def test_of_a_photo_that_was_never_hashed_no_look_alike_costs_the_source(across):
    begun = begin(across, known_hash=False, event="rejected", label=None, reason="corrupt")
    begun.destination.write_bytes(bytes(len(PHOTO)))
    shutil.copystat(begun.source, begun.destination)
    begun.recover()
    assert begun.source.read_bytes() == PHOTO


def test_a_rejected_file_gets_the_note_that_the_crash_prevented(place):
    begun = begin(place, event="rejected", label=None, reason="corrupt: bytes contradict themselves")
    begun.source.rename(begun.destination)
    begun.recover()
    note = begun.destination.with_name("a.jpg.reason.txt")
    assert note.read_text() == "corrupt: bytes contradict themselves\n"


def test_the_name_that_was_chosen_at_last_counts(begun):
    begun.destination.write_bytes(b"theirs")
    elsewhere = begun.destination.with_name("a-1.jpg")
    begun.ledger.redirect(begun.id, elsewhere)
    begun.source.rename(elsewhere)
    done, (row,) = begun.recover()
    assert done == {"finished": [begun.id]}
    assert row.destination == elsewhere


def test_rows_that_are_done_are_left_alone(begun):
    begun.ledger.finish([(begun.id, 1.0)])
    begun.source.unlink()
    assert begun.recover()[0] == {}
    assert begun.ledger.last(1)[0].state == "done"


def test_a_crash_in_the_middle_of_recovery_is_recovered_from(begun, monkeypatch):
    os.link(begun.source, begun.destination)
    monkeypatch.setattr(
        begun.ledger.__class__, "finish", lambda *_: (_ for _ in ()).throw(OSError("power cut"))
    )
    with pytest.raises(OSError, match="power cut"):
        recovery.recover(begun.ledger)
    monkeypatch.undo()
    done, _ = begun.recover()
    assert done == {"finished": [begun.id]}
    assert begun.files() == {"cats/a.jpg": PHOTO}
