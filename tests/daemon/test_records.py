import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from daemon import records
from pawsort import errors, ledger


@pytest.fixture
def settings(place):
    return SimpleNamespace(state=place.root / "state")


@pytest.fixture
def filed(place, arrive):
    """Two photos, sorted."""
    return place.filing.file([arrive("a.jpg"), arrive("b.jpg", label="dogs")]).filed


def found(settings, what):
    return [row.id for row in records.find(settings, str(what))]


def test_a_photo_is_found_by_the_path_it_had(settings, filed):
    assert found(settings, filed[0].verdict.path) == [filed[0].id]


def test_a_photo_is_found_by_the_path_it_has(settings, filed):
    assert found(settings, filed[1].destination) == [filed[1].id]


def test_a_photo_is_found_by_its_relative_path(settings, filed, monkeypatch):
    monkeypatch.chdir(filed[0].destination.parent)
    assert found(settings, "a.jpg") == [filed[0].id]
    assert found(settings, "../cats/./a.jpg") == [filed[0].id]


def test_a_photo_is_found_by_its_name_on_arrival(settings, filed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert found(settings, "a.jpg") == [filed[0].id]


def test_a_photo_is_found_by_its_content_wherever_a_person_moved_it(settings, filed, tmp_path):
    moved = tmp_path / "holiday.jpg"
    filed[0].destination.rename(moved)
    assert found(settings, moved) == [filed[0].id]


@pytest.mark.parametrize("length", [6, 12, 64])
def test_a_photo_is_found_by_its_sha256_or_the_beginning_of_it(settings, filed, length):
    digest = filed[0].verdict.sha256[:length]
    assert found(settings, digest) == [filed[0].id]
    assert found(settings, digest.upper()) == [filed[0].id]


def test_every_row_about_a_photo_is_found_once_newest_first(settings, place, arrive, filed):
    (again,) = place.filing.file([arrive("a.jpg")]).filed
    assert found(settings, filed[0].verdict.path) == [again.id, filed[0].id]
    assert found(settings, again.destination) == [again.id, filed[0].id]  # the same bytes


def test_a_name_that_is_not_utf_8_is_found(settings, place, arrive):
    name = os.fsdecode(b"caf\xe9.jpg")
    (photo,) = place.filing.file([arrive(name)]).filed
    assert found(settings, photo.destination) == [photo.id]
    document = records.as_document(records.find(settings, name)[0])
    assert document["file"] == "caf\\xe9.jpg"
    json.dumps(document).encode()


def test_what_is_not_known_is_not_found(settings, filed):
    assert found(settings, "nobody.jpg") == []
    assert found(settings, "/") == []


def test_without_a_ledger_nothing_is_found_and_none_is_made(tmp_path):
    assert records.find(SimpleNamespace(state=tmp_path / "state"), "a.jpg") == []
    assert not (tmp_path / "state").exists()


def test_a_damaged_ledger_is_told(tmp_path):
    (tmp_path / ledger.FILE).write_bytes(b"nonsense" * 1000)
    with pytest.raises(errors.LedgerError, match="not a database"):
        records.find(SimpleNamespace(state=tmp_path), "a.jpg")


def test_a_document_tells_whether_the_photo_is_still_there(settings, filed):
    (row,) = records.find(settings, str(filed[0].destination))
    document = records.as_document(row)
    assert document["is_there"]
    assert (document["file"], Path(document["destination"])) == ("a.jpg", filed[0].destination)
    filed[0].destination.unlink()
    assert not records.as_document(row)["is_there"]
