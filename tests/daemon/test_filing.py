import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

import faultstage
from daemon import filing, moving
from daemon.filing import BatchInterruptedError, Filing, numbered
from pawsort import errors, ledger


def destinations(place, outcome):
    return [os.fsencode(photo.destination.relative_to(place.root)).decode() for photo in outcome.filed]


def rows(place):
    """What the ledger says: {destination: state}."""
    return {str(row.destination): row.state for row in place.ledger.find()}


def assert_ledger_is_true(place):
    """Every row is done and its photo there; every photo in the folders has its row."""
    found = rows(place)
    assert set(found.values()) <= {"done"}
    photos = {
        str(path)
        for folder in (place.folders.sorted, place.folders.review, place.folders.rejected)
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(filing.REASON_SUFFIX)
    }
    assert set(found) == photos


# Where photos go


def test_each_outcome_has_its_folder(place, arrive):
    outcome = place.filing.file(
        [
            arrive("a.jpg"),
            arrive("b.jpg", label="Bären"),
            arrive("c.jpg", event="review"),
            arrive("d.jpg", event="review", is_duplicate=True),
            arrive("e.txt", event="rejected", reason="not_an_image: text"),
        ]
    )
    assert destinations(place, outcome) == [
        "sorted/cats/a.jpg",
        "sorted/Bären/b.jpg",
        "review/c.jpg",
        "review/duplicates/d.jpg",
        "rejected/e.txt",
    ]
    assert_ledger_is_true(place)


def test_everything_known_of_a_photo_is_recorded(place, arrive):
    verdict = arrive(
        best="cats",
        confidence=0.75,
        probabilities={"cats": 0.75, "dogs": 0.25},
        model="pets-1",
        width=640,
        height=480,
        decode_ms=1.0,
        infer_ms=2.0,
    )
    (filed,) = place.filing.file([verdict]).filed
    (row,) = place.ledger.last(1)
    assert row.id == filed.id
    assert (row.source, row.destination) == (verdict.path, filed.destination)
    assert (row.device, row.inode, row.bytes) == (
        verdict.identity.device,
        verdict.identity.inode,
        verdict.identity.bytes,
    )
    for name in (
        "event",
        "label",
        "best",
        "confidence",
        "probabilities",
        "model",
        "sha256",
        "width",
        "infer_ms",
    ):
        assert getattr(row, name) == getattr(verdict, name), name


def test_latency_is_counted_from_the_finished_file(place, arrive):
    place.filing._monotonic = lambda: 12.5
    outcome = place.filing.file([replace(arrive(), noticed_at=12.0)])
    assert outcome.filed[0].latency_ms == 500.0
    assert place.ledger.last(1)[0].latency_ms == 500.0


def test_a_sorted_photo_without_a_label_is_a_mistake(place, arrive):
    with pytest.raises(ValueError, match="a sorted photo has a label"):
        place.filing.file([replace(arrive(), label=None)])


def test_the_intent_is_in_the_ledger_before_the_photo_moves(place, arrive, monkeypatch):
    seen = []
    move = moving.move

    def watch(source, destination, *arguments, **options):
        seen.append([(row.state, row.destination) for row in place.ledger.find()])
        return move(source, destination, *arguments, **options)

    monkeypatch.setattr(moving, "move", watch)
    place.filing.file([arrive()])
    assert seen == [[("intent", place.folders.sorted / "cats" / "a.jpg")]]


def test_folders_are_synced_before_the_row_is_completed(place, arrive, monkeypatch):
    synced = []
    fsync = os.fsync

    def watch(descriptor):
        synced.append((os.readlink(f"/proc/self/fd/{descriptor}"), len(place.ledger.intents())))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    place.filing.file([arrive("a.jpg"), arrive("b.jpg")])
    folders = {place.inbox, place.folders.sorted, place.folders.sorted / "cats"}
    # Each once for the whole batch, while the rows still are intents.
    assert sorted(synced) == sorted((str(folder), 2) for folder in folders)


def test_a_sync_that_fails_stops_everything_and_leaves_the_rest_to_recovery(place, arrive, monkeypatch):
    def fail(_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(moving.UncertainError, match="Input/output error"):
        place.filing.file([arrive()])
    assert [row.state for row in place.ledger.find()] == ["intent"]


# Names


def test_a_name_that_is_taken_gets_a_number(place, arrive):
    (place.folders.sorted / "cats").mkdir()
    for name in ("a.jpg", "a-1.jpg"):
        (place.folders.sorted / "cats" / name).write_bytes(b"theirs")
    assert destinations(place, place.filing.file([arrive()])) == ["sorted/cats/a-2.jpg"]
    assert (place.folders.sorted / "cats" / "a.jpg").read_bytes() == b"theirs"


def test_a_name_taken_after_it_was_chosen_gets_a_number_and_the_row_follows(place, arrive, monkeypatch):
    taken = place.folders.sorted / "cats" / "a.jpg"
    begin = ledger.Ledger.begin

    def begin_and_be_overtaken(self, entries):
        ids = begin(self, entries)
        taken.parent.mkdir()
        taken.write_bytes(b"theirs")
        return ids

    monkeypatch.setattr(ledger.Ledger, "begin", begin_and_be_overtaken)
    outcome = place.filing.file([arrive()])
    assert destinations(place, outcome) == ["sorted/cats/a-1.jpg"]
    assert taken.read_bytes() == b"theirs"
    assert [row.destination.name for row in place.ledger.last(1)] == ["a-1.jpg"]


def test_one_name_a_thousand_times_loses_none_and_looks_few_names_up(place, monkeypatch, verdict_on):
    looks = 0
    lexists = os.path.lexists

    def count(path):
        nonlocal looks
        looks += 1
        return lexists(path)

    verdicts = []
    for number in range(1000):
        folder = place.inbox / str(number)
        folder.mkdir()
        (folder / "IMG.jpg").write_bytes(str(number).encode())
        verdicts.append(verdict_on(folder / "IMG.jpg"))
    monkeypatch.setattr(os.path, "lexists", count)
    for start in range(0, 1000, 50):
        assert len(place.filing.file(verdicts[start : start + 50]).filed) == 50
    assert looks < 5000
    there = {path.name: path.read_bytes() for path in (place.folders.sorted / "cats").iterdir()}
    assert there == {numbered("IMG.jpg", number): str(number).encode() for number in range(1000)}
    assert_ledger_is_true(place)


def test_a_name_that_became_free_is_given_again(place, arrive):
    place.filing.file([arrive()])
    place.filing.file([arrive()])
    (place.folders.sorted / "cats" / "a.jpg").unlink()
    assert destinations(place, place.filing.file([arrive()])) == ["sorted/cats/a.jpg"]


@pytest.mark.parametrize(
    ("name", "number", "expected"),
    [
        ("a.jpg", 0, "a.jpg"),
        ("a.jpg", 7, "a-7.jpg"),
        ("noextension", 7, "noextension-7"),
        ("a.tar.gz", 1, "a.tar-1.gz"),
        (".hidden", 1, ".hidden-1"),
        ("x" * 251 + ".jpg", 1, "x" * 249 + "-1.jpg"),
        ("x" * 251 + ".jpg", 1000, "x" * 246 + "-1000.jpg"),
        ("ä" * 125 + "x.jpg", 1, "ä" * 124 + "-1.jpg"),  # 250 bytes would cut the last ä in two
        ("a." + "x" * 253, 1, "a." + "x" * 251 + "-1"),  # an extension that long is none
        (os.fsdecode(b"\x80" * 251 + b".jpg"), 1, os.fsdecode(b"\x80" * 249 + b"-1.jpg")),
        (os.fsdecode(b"\xe9" * 251 + b".jpg"), 1, os.fsdecode(b"\xe9" * 249 + b"-1.jpg")),
    ],
)
def test_numbered_names_fit_the_file_system(name, number, expected):
    assert numbered(name, number) == expected
    assert len(os.fsencode(numbered(name, number))) <= 255


@pytest.mark.parametrize(
    "name",
    [
        b"x" * 251 + b".jpg",
        b"x" * 255,
        b"caf\xe9.jpg",
        b"a\nb.jpg",
        "🐻".encode() * 63 + b".a",
        b"\xff" * 255,
    ],
    ids=[
        "255 bytes",
        "255 bytes, no extension",
        "latin-1",
        "newline",
        "255 bytes of bears",
        "255 of no UTF-8",
    ],
)
@pytest.mark.parametrize("event", ["sorted", "rejected"])
def test_strange_names_are_filed_also_when_they_collide(place, name, event, verdict_on):
    reason = "corrupt: so it is" if event == "rejected" else None
    filed = []
    for number in range(3):
        path = place.inbox / os.fsdecode(name)
        path.write_bytes(str(number).encode())
        filed += place.filing.file([verdict_on(path, event=event, reason=reason)]).filed
    assert [photo.destination.read_bytes() for photo in filed] == [b"0", b"1", b"2"]
    assert os.fsencode(filed[0].destination.name) == name
    if event == "rejected":
        notes = {filing.note_beside(photo.destination) for photo in filed}
        assert [note.read_text() for note in notes] == ["corrupt: so it is\n"] * 3
    assert_ledger_is_true(place)


def test_two_long_names_alike_up_to_their_end_are_rejected_with_a_note_each(place, verdict_on):
    verdicts = []
    for ending in ("1", "2"):
        path = place.inbox / ("x" * 254 + ending)
        path.write_bytes(ending.encode())
        verdicts.append(verdict_on(path, event="rejected", reason=f"corrupt: {ending}"))
    filed = place.filing.file(verdicts).filed
    notes = [filing.note_beside(photo.destination).read_text() for photo in filed]
    assert notes == ["corrupt: 1\n", "corrupt: 2\n"]


def test_two_threads_of_people_moving_files_in_lose_nothing(place, verdict_on):
    """Somebody drops files into the class folder, under the same names, while we file into it."""
    folder = place.folders.sorted / "cats"
    folder.mkdir()
    verdicts = []
    for number in range(200):
        path = place.inbox / f"{number}.jpg"
        path.write_bytes(b"ours")
        verdicts.append(verdict_on(path))
    kept = []

    def drop():
        for number in reversed(range(200)):
            try:
                with (folder / f"{number}.jpg").open("xb") as stream:
                    stream.write(b"theirs")
            except FileExistsError:
                continue
            kept.append(number)

    person = threading.Thread(target=drop)
    person.start()
    outcome = place.filing.file(verdicts)
    person.join()
    assert len(outcome.filed) == 200
    assert {photo.destination.read_bytes() for photo in outcome.filed} == {b"ours"}
    assert len(list(folder.iterdir())) == 200 + len(kept)


# Notes beside rejected files


def test_a_rejected_file_gets_a_note_that_a_person_can_read(place, arrive, tree):
    place.filing.file(
        [arrive("a.jpg", b"?", event="rejected", reason="not_an_image: these bytes are no picture")]
    )
    assert tree(place.folders.rejected) == {
        "a.jpg": b"?",
        "a.jpg.reason.txt": b"not_an_image: these bytes are no picture\n",
    }


def test_a_file_named_like_a_note_takes_nobodys_note(place, arrive, tree):
    place.filing.file(
        [
            arrive("a.jpg", b"1", event="rejected", reason="first"),
            arrive("a.jpg.reason.txt", b"2", event="rejected", reason="second"),
        ]
    )
    assert tree(place.folders.rejected) == {
        "a.jpg": b"1",
        "a.jpg.reason.txt": b"first\n",
        "a.jpg.reason-1.txt": b"2",
        "a.jpg.reason-1.txt.reason.txt": b"second\n",
    }


def test_a_note_that_is_there_is_never_overwritten(place, tree):
    (place.folders.rejected / "a.jpg").write_bytes(b"?")
    (place.folders.rejected / "a.jpg.reason.txt").write_bytes(b"a person's")
    filing.write_reason(place.folders.rejected / "a.jpg", "ours")
    assert tree(place.folders.rejected)["a.jpg.reason.txt"] == b"a person's"


def test_no_note_is_left_beside_nothing(place, tree):
    filing.write_reason(place.folders.rejected / "gone.jpg", "whatever")
    assert tree(place.folders.rejected) == {}


# A batch in which not all goes well


def test_changed_and_vanished_photos_do_not_hold_the_others_up(place, arrive, tree):
    verdicts = [arrive(f"{number}.jpg") for number in range(4)]
    verdicts[1].path.write_bytes(b"changed meanwhile")
    verdicts[2].path.unlink()
    outcome = place.filing.file(verdicts)
    assert destinations(place, outcome) == ["sorted/cats/0.jpg", "sorted/cats/3.jpg"]
    assert outcome.changed == verdicts[1:3]
    assert tree(place.inbox) == {"1.jpg": b"changed meanwhile"}
    assert_ledger_is_true(place)


@pytest.mark.faults
def test_an_immutable_photo_does_not_hold_the_others_up(place, arrive):
    verdicts = [arrive(f"{number}.jpg") for number in range(3)]
    with faultstage.immutable(verdicts[1].path):
        outcome = place.filing.file(verdicts)
        assert destinations(place, outcome) == ["sorted/cats/0.jpg", "sorted/cats/2.jpg"]
        ((refused, error),) = outcome.refused
        assert refused == verdicts[1]
        assert isinstance(error, PermissionError)
        assert_ledger_is_true(place)
    assert destinations(place, place.filing.file([refused])) == ["sorted/cats/1.jpg"]


def test_a_file_where_a_class_folder_should_be_holds_up_the_photos_of_that_class_alone(place, arrive, tree):
    (place.folders.sorted / "cats").write_bytes(b"somebody's notes")
    verdicts = [arrive("1.jpg"), arrive("2.jpg", label="dogs")]
    outcome = place.filing.file(verdicts)
    assert destinations(place, outcome) == ["sorted/dogs/2.jpg"]
    ((refused, error),) = outcome.refused
    assert refused == verdicts[0]
    assert "sorted/cats is in its way and no folder; move it" in str(error)
    (place.folders.sorted / "cats").rename(place.root / "notes")
    assert destinations(place, place.filing.file([refused])) == ["sorted/cats/1.jpg"]
    assert_ledger_is_true(place)
    assert tree(place.inbox) == {}


@pytest.mark.faults
@pytest.mark.parametrize("which", ["inbox", "cats"])
def test_a_folder_that_may_not_be_written_to_is_a_fault_for_all(place, arrive, which):
    (place.folders.sorted / "cats").mkdir()
    folder = place.inbox if which == "inbox" else place.folders.sorted / "cats"
    verdicts = [arrive(f"{number}.jpg") for number in range(3)]
    with faultstage.immutable(folder), pytest.raises(BatchInterruptedError) as caught:
        place.filing.file(verdicts)
    assert caught.value.filed == []
    assert len(place.filing.file(verdicts).filed) == 3
    assert_ledger_is_true(place)


def test_a_missing_destination_is_a_fault_and_no_folder_is_made_on_a_bare_mount_point(place, arrive):
    verdict = arrive()
    place.folders.sorted.rmdir()
    with pytest.raises(BatchInterruptedError, match="No such file"):
        place.filing.file([verdict])
    assert not place.folders.sorted.exists()
    assert verdict.path.exists()
    assert rows(place) == {}
    place.folders.sorted.mkdir()
    assert len(place.filing.file([verdict]).filed) == 1


def test_a_class_folder_removed_by_its_owner_is_made_again(place, arrive):
    place.filing.file([arrive("a.jpg")])
    (place.folders.sorted / "cats" / "a.jpg").unlink()
    (place.folders.sorted / "cats").rmdir()
    assert destinations(place, place.filing.file([arrive("b.jpg")])) == ["sorted/cats/b.jpg"]


@pytest.mark.faults
def test_a_disk_full_in_the_middle_of_a_batch_leaves_every_photo_in_exactly_one_place(place, arrive, tree):
    photos = {f"{number}.jpg": bytes([number]) * 200_000 for number in range(10)}
    verdicts = [arrive(name, data) for name, data in photos.items()]
    with faultstage.file_system(place.folders.sorted, "size=1m"):
        with pytest.raises(BatchInterruptedError, match="No space left") as caught:
            place.filing.file(verdicts)
        there = tree(place.folders.sorted)
        assert 1 <= len(there) < 10
        assert len(caught.value.filed) == len(there)
        left = tree(place.inbox)
        assert {Path(name).name: data for name, data in {**there, **left}.items()} == photos
        assert len(there) + len(left) == 10
        assert_ledger_is_true(place)

        # The cure: what is left is filed, and nothing that was filed is filed again.
        for path in (place.folders.sorted / "cats").iterdir():
            path.unlink()
        rest = [verdict for verdict in verdicts if verdict.path.exists()][:2]
        assert len(place.filing.file(rest).filed) == 2


@pytest.mark.faults
def test_a_disk_out_of_inodes_is_the_same(place, arrive, tree):
    verdicts = [arrive(f"{number}.jpg") for number in range(20)]
    with faultstage.file_system(place.folders.sorted, "nr_inodes=10"):
        with pytest.raises(BatchInterruptedError, match="No space left"):
            place.filing.file(verdicts)
        assert len(tree(place.folders.sorted)) + len(tree(place.inbox)) == 20
        assert_ledger_is_true(place)


@pytest.mark.faults
def test_a_read_only_destination_is_a_fault_and_the_photos_stay(place, arrive, tree):
    with faultstage.file_system(place.folders.sorted, "size=1m,ro"):
        verdicts = [arrive("a.jpg"), arrive("b.jpg")]
        with pytest.raises(BatchInterruptedError, match="Read-only"):
            place.filing.file(verdicts)
        assert set(tree(place.inbox)) == {"a.jpg", "b.jpg"}
        assert rows(place) == {}
    assert len(place.filing.file(verdicts).filed) == 2


@pytest.mark.faults
def test_notes_are_owed_while_the_disk_is_full_and_written_when_it_is_not(place, arrive, tree):
    with faultstage.file_system(place.folders.rejected, "size=1m"):
        ballast = faultstage.fill(place.folders.rejected)
        # An empty file still finds room there, its note does not.
        verdict = arrive("a.jpg", b"", event="rejected", reason="empty: no bytes")
        with pytest.raises(BatchInterruptedError, match="No space left") as caught:
            place.filing.file([verdict])
        assert [photo.destination.name for photo in caught.value.filed] == ["a.jpg"]
        assert "a.jpg.reason.txt" not in tree(place.folders.rejected)
        with pytest.raises(OSError, match="No space left"):
            place.filing.settle_debts()
        waiting = arrive("b.jpg")
        with pytest.raises(BatchInterruptedError, match="No space left"):
            place.filing.file([waiting])
        assert waiting.path.exists()
        ballast.unlink()
        place.filing.settle_debts()
        assert tree(place.folders.rejected) == {"a.jpg": b"", "a.jpg.reason.txt": b"empty: no bytes\n"}
        assert_ledger_is_true(place)


def small_ledger(place, folder):
    book = ledger.Ledger(folder / "ledger.sqlite3")
    return Filing(place.inbox, place.folders, book), book


@pytest.mark.faults
def test_a_full_disk_under_the_ledger_moves_nothing(place, arrive, tree):
    with faultstage.file_system(place.root / "small", "size=1m") as folder:
        filer, book = small_ledger(place, folder)
        with book:
            faultstage.fill(folder)
            verdicts = [arrive(f"{number}.jpg", reason="x" * 1000) for number in range(200)]
            with pytest.raises(errors.LedgerError):
                filer.file(verdicts)
            assert len(tree(place.inbox)) == 200
            assert tree(place.folders.sorted) == {}


@pytest.mark.faults
def test_a_disk_that_fills_up_under_the_ledger_during_the_moves_owes_the_completion(
    place, arrive, monkeypatch
):
    with faultstage.file_system(place.root / "small", "size=1m") as folder:
        filer, book = small_ledger(place, folder)
        with book:
            ballast = None
            move = moving.move

            def move_and_fill(*arguments, **options):
                nonlocal ballast
                ballast = ballast or faultstage.fill(folder)
                return move(*arguments, **options)

            monkeypatch.setattr(moving, "move", move_and_fill)
            verdicts = [arrive(f"{number}.jpg") for number in range(60)]
            with pytest.raises(BatchInterruptedError) as caught:
                filer.file(verdicts)
            assert len(caught.value.filed) == 60
            assert len(book.intents()) == 60
            with pytest.raises(errors.LedgerError):
                filer.settle_debts()
            ballast.unlink()
            filer.settle_debts()
            assert book.intents() == []
            assert book.counts().sorted == 60


def test_across_file_systems_a_batch_is_filed_whole(across, arrive_across, tree):
    verdicts = [arrive_across(f"{number}.jpg") for number in range(20)]
    verdicts[3].path.write_bytes(b"changed")
    outcome = across.filing.file(verdicts)
    assert len(outcome.filed) == 19
    assert set(tree(across.inbox)) == {"3.jpg"}
    assert_ledger_is_true(across)
