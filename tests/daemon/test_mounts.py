import os
from types import SimpleNamespace

import pytest

import faultstage
from daemon.mounts import FILE, Mounts
from pawsort import errors


@pytest.fixture
def settings(tmp_path):
    folders = {name: tmp_path / name for name in ("inbox", "sorted", "review", "rejected", "state")}
    for folder in folders.values():
        folder.mkdir()
    return SimpleNamespace(**folders)


def test_where_all_lies_on_one_file_system_nothing_is_ever_missing(settings):
    mounts = Mounts(settings)
    mounts.remember()
    settings.sorted.rmdir()
    assert mounts.problem() is None


@pytest.mark.parametrize("where", ["sorted", "sorted/a class", "disk", "inbox"])
def test_a_file_system_that_was_there_is_missed_also_after_a_restart(settings, tmp_path, where):
    if where == "disk":
        settings.sorted = tmp_path / "disk" / "photos" / "sorted"
    with faultstage.file_system(tmp_path / where):
        settings.sorted.mkdir(parents=True, exist_ok=True)
        mounts = Mounts(settings)
        mounts.remember()
        assert mounts.problem() is None
    assert str(tmp_path / where) in (mounts.problem() or "")
    with pytest.raises(errors.MachineError, match="mount it, or remove .*mounts.json"):
        Mounts(settings).check()
    with faultstage.file_system(tmp_path / where):
        assert Mounts(settings).problem() is None


def test_a_file_system_mounted_meanwhile_is_remembered(settings):
    mounts = Mounts(settings)
    mounts.remember()
    with faultstage.file_system(settings.review):
        assert mounts.problem() is None
    assert mounts.problem() is not None


def test_what_the_settings_no_longer_name_is_not_missed(settings, tmp_path):
    with faultstage.file_system(settings.sorted):
        Mounts(settings).remember()
    settings.sorted = tmp_path / "elsewhere"
    assert Mounts(settings).problem() is None


def test_removing_what_was_remembered_is_the_remedy_it_names(settings):
    with faultstage.file_system(settings.sorted):
        Mounts(settings).remember()
    (settings.state / FILE).unlink()
    assert Mounts(settings).problem() is None


def test_a_memory_that_cannot_be_read_is_told_and_not_taken_for_an_empty_one(settings):
    (settings.state / FILE).write_text("[")
    with pytest.raises(errors.MachineError, match="remove it"):
        Mounts(settings)


def test_names_that_are_not_utf_8_are_remembered(settings, tmp_path):
    settings.sorted = tmp_path / os.fsdecode(b"\xff disk")
    with faultstage.file_system(settings.sorted):
        Mounts(settings).remember()
    assert Mounts(settings).problem() is not None
