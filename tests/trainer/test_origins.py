"""Each origin of a label, with real moves: the daemon's own modules file the photos, and a person moves them."""

import hashlib
import os
import shutil
import time

import pytest

from daemon import records, returning
from daemon.filing import Filing, Folders, Verdict
from daemon.intake import Identity
from pawsort import config
from pawsort.ledger import FILE, Ledger
from pawsort.placements import DAY
from trainer import origins
from trainer.dataset import Origin


@pytest.fixture
def place(tmp_path):
    """Folders and a ledger, and the hands of the daemon and of a person."""
    file = tmp_path / "config.yaml"
    file.write_text("inbox: inbox\nsorted: sorted\n")
    settings = config.load(file)
    for folder in (settings.inbox, settings.sorted, settings.review, settings.rejected):
        folder.mkdir()
    with Ledger(settings.state / FILE) as ledger:
        yield Place(settings, ledger)


class Place:
    def __init__(self, settings, ledger) -> None:
        self.settings, self.ledger = settings, ledger
        folders = Folders(sorted=settings.sorted, review=settings.review, rejected=settings.rejected)
        self._filing = Filing(settings.inbox, folders, ledger)

    def file(self, name="a.jpg", label="left", data=None, event="sorted"):
        """The daemon files a photo; its path."""
        path = self.settings.inbox / name
        path.write_bytes(name.encode() if data is None else data)
        verdict = Verdict(
            path=path,
            identity=Identity.of(os.lstat(path)),
            noticed_at=time.monotonic(),
            event=event,
            label=label if event == "sorted" else None,
            model="m1",
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        [filed] = self._filing.file([verdict]).filed
        return filed.destination

    def put(self, name, label, data=None):
        """A person puts a new photo into a class folder; its path."""
        path = self.settings.sorted / label / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode() if data is None else data)
        return path

    def move(self, path, label, name=None):
        """A person moves a photo to another class folder; its path."""
        target = self.settings.sorted / label / (name or path.name)
        target.parent.mkdir(exist_ok=True)
        wait_for_a_tick(self.settings.state)
        return path.rename(target)

    def survey(self):
        return origins.survey(self.settings.sorted, self.ledger, self.settings.state)

    def found(self):
        """Label and origin of all photos, by content."""
        contents = {}
        for photo in self.survey().photos:
            contents[photo.path.read_bytes().decode()] = (photo.label, photo.origin)
        return contents

    def refresh(self):
        """What a refresh does with what it sees."""
        survey = self.survey()
        origins.record(self.ledger, survey)
        return survey


def wait_for_a_tick(folder):
    """Until the clock that files are stamped with has gone on; it ticks every few milliseconds."""
    stamp = folder / "tick"
    begun = time.time()
    while True:
        stamp.write_bytes(b"")
        if stamp.stat().st_ctime > begun:
            return


# -- The four origins -------------------------------------------------------------------------------


def test_a_photo_that_the_daemon_never_saw_is_placed(place):
    place.put("mine.jpg", "left")
    assert place.found() == {"mine.jpg": ("left", Origin.PLACED)}


def test_a_photo_where_the_daemon_put_it_is_predicted(place):
    place.file("a.jpg", "left")
    assert place.found() == {"a.jpg": ("left", Origin.PREDICTED)}


def test_a_photo_moved_to_another_class_is_corrected(place):
    place.move(place.file("a.jpg", "left"), "right")
    assert place.found() == {"a.jpg": ("right", Origin.CORRECTED)}


def test_a_photo_moved_to_another_class_and_renamed_is_corrected(place):
    place.move(place.file("a.jpg", "left"), "right", name="Holiday.jpeg")
    assert place.found() == {"a.jpg": ("right", Origin.CORRECTED)}


def test_a_photo_carried_to_another_class_by_way_of_another_disk_is_corrected(place, tmp_path):
    path = place.file("a.jpg", "left")
    (place.settings.sorted / "right").mkdir()
    shutil.copyfile(path, place.settings.sorted / "right" / "b.jpg")  # another inode and another time
    path.unlink()
    assert place.found() == {"a.jpg": ("right", Origin.CORRECTED)}


def test_a_photo_only_renamed_in_its_folder_is_still_predicted(place):
    place.move(place.file("a.jpg", "left"), "left", name="b.jpg")
    assert place.found() == {"a.jpg": ("left", Origin.PREDICTED)}


def test_a_photo_put_deeper_into_its_class_folder_is_still_predicted(place):
    path = place.file("a.jpg", "left")
    (path.parent / "2026").mkdir()
    path.rename(path.parent / "2026" / "a.jpg")
    assert place.found() == {"a.jpg": ("left", Origin.PREDICTED)}


def test_a_photo_taken_out_of_review_into_a_class_folder_is_confirmed(place):
    place.move(place.file("a.jpg", event="review"), "right")
    assert place.found() == {"a.jpg": ("right", Origin.CONFIRMED)}


def test_a_photo_left_in_review_is_nobody_s(place):
    place.file("a.jpg", event="review")
    assert place.found() == {}


def test_photos_that_a_person_said_are_right_are_confirmed(place):
    one, other = place.file("a.jpg", "left"), place.file("b.jpg", "left")
    assert records.confirm(place.ledger, place.settings, [one]) == 1
    assert place.found() == {"a.jpg": ("left", Origin.CONFIRMED), "b.jpg": ("left", Origin.PREDICTED)}
    assert other.is_file()


def test_a_word_holds_only_while_the_photo_lies_where_it_was_said(place):
    path = place.file("a.jpg", "left")
    records.confirm(place.ledger, place.settings, [path])
    place.move(path, "right")
    assert place.found() == {"a.jpg": ("right", Origin.CORRECTED)}


def test_a_photo_put_back_by_undo_and_then_into_a_class_folder_is_a_person_s(place):
    for name, label in (("a.jpg", "left"), ("b.jpg", "right")):
        path = place.file(name, "left")
        [(_, back)] = returning.undo(place.ledger, place.settings.inbox, place.ledger.last(1)).back
        assert not path.exists()
        place.move(back, label)
    assert place.found() == {"a.jpg": ("left", Origin.CONFIRMED), "b.jpg": ("right", Origin.CORRECTED)}


def test_a_photo_put_back_by_undo_and_sorted_again_is_predicted(place):
    place.file("a.jpg", "left")
    [(_, back)] = returning.undo(place.ledger, place.settings.inbox, place.ledger.last(1)).back
    back.unlink()
    place.file("a.jpg", "right")
    assert place.found() == {"a.jpg": ("right", Origin.PREDICTED)}


def test_a_photo_that_is_being_filed_is_predicted_already(place, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(place.ledger, "finish", lambda _: None)  # as if the power failed here
        place.file("a.jpg", "left")
    assert place.found() == {"a.jpg": ("left", Origin.PREDICTED)}


def test_a_photo_filed_during_the_survey_is_never_taken_for_a_person_s(place, monkeypatch):
    """The folders are listed first, so each photo that is seen has its row by then."""
    real = origins.placements

    def file_one_more(ledger):
        found = real(ledger)
        place.file("late.jpg", "left")
        return found

    place.file("early.jpg", "left")
    monkeypatch.setattr(origins, "placements", file_one_more)
    assert place.found() == {"early.jpg": ("left", Origin.PREDICTED)}


def test_a_photo_replaced_during_the_survey_is_left_out(place, monkeypatch):
    path = place.put("mine.jpg", "left")
    real = origins.placements

    def replace(ledger):
        found = real(ledger)
        path.unlink()
        assert place.file("mine.jpg", "left", data=b"another photo") == path
        return found

    monkeypatch.setattr(origins, "placements", replace)
    survey = place.survey()
    assert survey.photos == ()
    assert survey.unreadable == (path,)


def test_a_deleted_photo_is_forgotten(place):
    kept, gone = place.put("a.jpg", "left"), place.move(place.file("b.jpg", "left"), "right")
    place.refresh()
    gone.unlink()
    assert place.found() == {"a.jpg": ("left", Origin.PLACED)}
    assert kept.is_file()


# -- A correction is for good -----------------------------------------------------------------------


def test_a_corrected_photo_that_the_daemon_files_as_before_keeps_the_person_s_label(place):
    moved = place.move(place.file("a.jpg", "left"), "right")
    place.refresh()
    moved.rename(place.settings.inbox / "again.jpg")
    path = place.file("again.jpg", "left", data=b"a.jpg")
    survey = place.survey()
    assert [(photo.label, photo.origin) for photo in survey.photos] == [("right", Origin.CORRECTED)]
    assert [photo.path for photo in survey.overruled] == [path]


def test_a_person_may_take_the_correction_back(place):
    moved = place.move(place.file("a.jpg", "left"), "right")
    place.refresh()
    place.move(moved, "left")
    survey = place.refresh()
    assert [(photo.label, photo.origin) for photo in survey.photos] == [("left", Origin.CONFIRMED)]
    assert place.found() == {"a.jpg": ("left", Origin.CONFIRMED)}


def test_a_person_may_correct_a_correction(place):
    moved = place.move(place.file("a.jpg", "left"), "right")
    place.refresh()
    place.move(moved, "middle")
    place.refresh()
    assert place.found() == {"a.jpg": ("middle", Origin.CORRECTED)}
    assert {label for label, _ in place.ledger.confirmations().values()} == {"middle"}


def test_what_is_recorded_already_is_not_recorded_again(place):
    place.move(place.file("a.jpg", "left"), "right")
    place.refresh()
    before = place.ledger.confirmations()
    assert place.refresh().news == {}
    assert place.ledger.confirmations() == before


def test_neither_placed_nor_predicted_photos_are_recorded(place):
    place.put("mine.jpg", "left")
    place.file("a.jpg", "left")
    place.refresh()
    assert place.ledger.confirmations() == {}


# -- The same bytes in several places ---------------------------------------------------------------


def test_of_the_same_bytes_in_two_folders_the_person_s_word_counts(place):
    place.file("a.jpg", "left", data=b"one")
    copy = place.put("copy.jpg", "right", data=b"one")
    for _ in range(2):  # also once the word is recorded
        survey = place.refresh()
        assert [(p.path, p.label, p.origin) for p in survey.photos] == [(copy, "right", Origin.CORRECTED)]
        assert survey.contradicted == ()


def test_two_people_s_words_that_contradict_leave_the_photo_out(place):
    paths = {place.put("a.jpg", "left", data=b"one"), place.put("b.jpg", "right", data=b"one")}
    survey = place.survey()
    assert survey.photos == ()
    assert [set(group) for group in survey.contradicted] == [paths]


def test_guesses_that_contradict_leave_the_photo_out_without_a_word(place):
    place.file("a.jpg", "left", data=b"one")
    place.file("b.jpg", "right", data=b"one")
    survey = place.survey()
    assert (survey.photos, survey.contradicted) == ((), ())


def test_of_two_filed_copies_the_renamed_one_is_not_taken_for_moved(place):
    first = place.file("a.jpg", "left", data=b"one")
    place.file("b.jpg", "left", data=b"one")
    place.move(first, "left", name="renamed.jpg")
    assert place.found() == {"one": ("left", Origin.PREDICTED)}


def test_of_two_filed_copies_in_two_folders_the_one_that_was_moved_counts(place):
    first = place.file("a.jpg", "left", data=b"one")
    place.file("b.jpg", "right", data=b"one")
    place.move(first, "middle")
    assert place.found() == {"one": ("middle", Origin.CORRECTED)}


def test_of_two_filed_copies_each_renamed_in_its_folder_none_is_taken_for_moved(place):
    for label in ("left", "right"):
        place.move(place.file(f"{label}.jpg", label, data=b"one"), label, name="renamed.jpg")
    survey = place.survey()
    assert (survey.photos, survey.contradicted) == ((), ())


def test_filed_copies_restored_from_a_backup_are_not_taken_for_moved(place):
    for label in ("left", "right"):
        path = place.file(f"{label}.jpg", label, data=b"one")
        restored = path.with_name("restored.jpg")
        restored.write_bytes(b"one")
        path.unlink()
        if label == "right":
            restored.rename(path)
    survey = place.survey()
    assert (survey.photos, survey.contradicted) == ((), ())


# -- Trust, names, speed ----------------------------------------------------------------------------


def test_guesses_are_trusted_after_so_many_days_and_not_at_all_by_default(place):
    place.file("a.jpg", "left")
    place.put("mine.jpg", "left")
    survey, now = place.survey(), time.time()
    assert survey.trusted(None, now + 1000 * DAY) == []
    assert survey.trusted(3, now + 2.9 * DAY) == []
    assert [photo.origin for photo in survey.trusted(3, now + 3.1 * DAY)] == [Origin.PREDICTED]
    assert [photo.origin for photo in survey.labelled_by_people()] == [Origin.PLACED]


def test_a_class_folder_in_another_unicode_form_is_the_same_class(place):
    path = place.file("a.jpg", "Kätzchen")
    path.parent.rename(path.parent.with_name("Ka\u0308tzchen"))
    assert place.found() == {"a.jpg": ("Kätzchen", Origin.PREDICTED)}


def test_hidden_things_and_loose_files_are_no_photos(place):
    place.put(".half.jpg", "left")
    place.put("a.jpg", ".trash")
    (place.settings.sorted / "loose.jpg").write_bytes(b"loose")
    assert place.found() == {}


def test_without_a_ledger_everything_was_placed(tmp_path):
    folder = tmp_path / "sorted" / "left"
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes(b"a")
    survey = origins.survey(tmp_path / "sorted", None, tmp_path / "state")
    assert [(photo.label, photo.origin) for photo in survey.photos] == [("left", Origin.PLACED)]


def test_a_second_survey_reads_no_photo_again(place, monkeypatch):
    place.put("a.jpg", "left")
    place.file("b.jpg", "right")
    before = place.found()
    monkeypatch.setattr(origins.reading, "open_regular", lambda path: pytest.fail(f"{path} was read"))
    assert place.found() == before


def test_a_photo_that_changed_is_read_again(place):
    path = place.put("a.jpg", "left")
    place.survey()
    path.write_bytes(b"x.jpg")  # as long as before
    os.utime(path, (1, 1))
    assert place.found() == {"x.jpg": ("left", Origin.PLACED)}


def test_a_damaged_list_of_hashes_is_made_anew(place):
    place.put("a.jpg", "left")
    before = place.found()
    (place.settings.state / origins.DIGESTS).write_text("[[1, 2")
    assert place.found() == before
