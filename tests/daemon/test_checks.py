import json
import os

import pytest

import faultstage
from daemon import checks
from pawsort import config, registry


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    import tinymodel

    return tinymodel.shapes(tmp_path_factory)


@pytest.fixture
def settings(tmp_path, model, monkeypatch):
    """Reads settings whose shipped model is a small one."""
    monkeypatch.setattr(registry, "shipped", lambda: model.path)

    def settings(text="inbox: inbox\nsorted: sorted\n"):
        (tmp_path / "config.yaml").write_text(text)
        return config.load(tmp_path / "config.yaml")

    return settings


def examine(settings):
    return {finding.what: finding for finding in checks.examine(settings)}


def test_everything_usable_is_said_to_be(settings, tmp_path):
    for name in ("inbox", "sorted"):
        (tmp_path / name).mkdir()
    found = examine(settings())
    assert all(finding.usable for finding in found.values()), found
    assert found["inbox"].value == str(tmp_path / "inbox")
    assert found["review"].detail == "will be made"
    assert "shapes-1" in found["model"].value
    assert "circles, squares, triangles; sure from 0.500, 90.0% right" in found["model"].detail
    assert (found["engine"].value, found["engine"].detail) == ("openvino", "answers; float graph")


def test_looking_changes_nothing(settings, tmp_path):
    read = settings()
    before = sorted(tmp_path.rglob("*"))
    checks.examine(read)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_where_a_folder_should_be_is_told_with_the_remedy(settings, tmp_path):
    (tmp_path / "inbox").write_text("")
    finding = examine(settings())["inbox"]
    assert not finding.usable
    assert "no folder; move it away" in finding.detail


def test_a_dangling_link_where_a_folder_should_be_is_told(settings, tmp_path):
    (tmp_path / "inbox").symlink_to(tmp_path / "unmounted")
    assert not examine(settings())["inbox"].usable


@pytest.mark.faults
def test_a_read_only_folder_is_told_with_the_remedy(settings, tmp_path):
    with faultstage.file_system(tmp_path / "sorted", "size=1m,ro"):
        finding = examine(settings())["sorted"]
    assert not finding.usable
    assert "cannot be written to" in finding.detail


@pytest.mark.faults
def test_a_folder_that_cannot_be_made_is_told(settings, tmp_path):
    with faultstage.file_system(tmp_path / "disk", "size=1m,ro"):
        finding = examine(settings("inbox: disk/a/inbox\nsorted: sorted\n"))["inbox"]
    assert not finding.usable
    assert f"cannot be made in {tmp_path / 'disk'}" in finding.detail


def test_a_model_that_cannot_be_used_is_told_and_no_engine_is_claimed(settings, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "current").symlink_to("gone")
    found = examine(settings())
    assert not found["model"].usable
    assert "points to gone" in found["model"].detail
    assert "engine" not in found


def test_the_threshold_of_the_settings_is_the_one_in_force(settings):
    found = examine(settings("inbox: inbox\nsorted: sorted\nthreshold: 0.75\n"))
    assert "sure from 0.750" in found["model"].detail


def test_the_engine_of_the_settings_is_the_one_that_answers(settings):
    assert examine(settings("inbox: inbox\nsorted: sorted\nengine: torch\n"))["engine"].value == "torch"


def test_the_document_is_plain_and_says_whether_all_is_usable(settings, tmp_path):
    read = settings()
    findings = checks.examine(read)
    document = json.loads(json.dumps(checks.as_document(read, findings)))
    assert document["usable"]
    assert document["settings"]["inbox"] == str(tmp_path / "inbox")
    assert {finding["what"] for finding in document["findings"]} >= {"inbox", "sorted", "state", "model"}
    (tmp_path / "inbox").write_text("")
    assert not checks.as_document(read, checks.examine(read))["usable"]
    assert os.path.isfile(tmp_path / "inbox")
