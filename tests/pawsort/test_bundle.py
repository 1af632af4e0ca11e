import json
import math
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import tinymodel
from pawsort import bundle, errors
from pawsort.classifier import open_classifier
from pawsort.decision import Familiarity


def change(folder, edit):
    """Edit bundle.json in place."""
    file = folder / "bundle.json"
    manifest = json.loads(file.read_text())
    edit(manifest)
    file.write_text(json.dumps(manifest))


def put(*keys_and_value):
    """An edit that sets one field, however deep."""
    *keys, last, value = keys_and_value

    def edit(manifest):
        for key in keys:
            manifest = manifest[key]
        manifest[last] = value

    return edit


def drop(*keys):
    """An edit that removes one field."""
    *keys, last = keys

    def edit(manifest):
        for key in keys:
            manifest = manifest[key]
        del manifest[last]

    return edit


def replace(file, data):
    """Other bytes in a file, which the bundle it was copied from keeps as it is."""
    file.unlink()
    file.write_bytes(data)


def refusal(folder):
    with pytest.raises(errors.ModelError) as caught:
        bundle.load(folder)
    return str(caught.value)


def reseal(folder):
    """Give a changed bundle new checksums, as somebody would who made it so on purpose."""
    manifest = json.loads((folder / "bundle.json").read_text())
    for field in ("format_version", "files"):
        del manifest[field]
    return bundle.seal(folder, manifest)


def test_a_sealed_bundle_reads_back_as_it_was_made(trained):
    again = bundle.load(trained.path)
    assert (again.name, again.labels, again.size, again.views) == (
        "shapes-1",
        ("circles", "squares", "triangles"),
        tinymodel.SIZE,
        ("centre", "whole"),
    )
    assert (again.feature_length, again.precision, again.parent) == (512, "float", None)
    assert again.rule.looks == trained.rule.looks
    assert (again.rule.familiarity.means == trained.rule.familiarity.means).all()
    assert again.accuracy == 0.9
    assert again.created.startswith("2026")
    assert again.graph.is_file()
    assert again.weights.is_file()


def test_every_other_file_is_under_a_checksum(trained):
    others = {path.name for path in trained.path.iterdir()} - {"bundle.json"}
    assert set(trained.manifest["files"]) == others


@pytest.mark.parametrize("name", ["model.xml", "model.bin", "weights.safetensors", "decision.safetensors"])
def test_one_changed_byte_in_any_file_is_noticed(copied, name):
    data = bytearray((copied / name).read_bytes())
    data[len(data) // 2] ^= 1
    replace(copied / name, data)
    assert f"{copied / name}: damaged" in refusal(copied)


@pytest.mark.parametrize("name", ["model.xml", "model.bin", "weights.safetensors", "decision.safetensors"])
def test_a_missing_file_is_named(copied, name):
    (copied / name).unlink()
    assert f"{copied / name}: listed in bundle.json but cannot be read: No such file" in refusal(copied)


@pytest.mark.parametrize("name", ["model.xml", "model.bin", "weights.safetensors"])
def test_a_bundle_that_does_not_list_what_it_needs_is_refused(copied, name):
    change(copied, drop("files", name))
    assert f"bundle.json: files does not list {name}" in refusal(copied)


def test_a_folder_without_a_manifest_is_no_model(tmp_path):
    assert refusal(tmp_path) == f"{tmp_path}: no model here (bundle.json is missing)"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"{", "is not JSON"),
        (b"\xff\xfe\x00nonsense", "is not JSON"),
        (b"[1, 2]", "is not a JSON object"),
        (b"", "is not JSON"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_named(copied, text, complaint):
    (copied / "bundle.json").write_bytes(text)
    assert f"{copied / 'bundle.json'}: {complaint}" in refusal(copied)


def test_a_manifest_that_is_a_folder_is_named(copied):
    (copied / "bundle.json").unlink()
    (copied / "bundle.json").mkdir()
    assert "bundle.json: cannot be read: Is a directory" in refusal(copied)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_format_is_refused_with_the_remedy(copied, version):
    change(copied, put("format_version", version))
    assert f"format_version is {version!r}, this pawsort reads 1; install the pawsort" in refusal(copied)


LOOKS = ("decision", "looks")
DAMAGE = {
    "no labels": (drop("labels"), "labels: 'labels' is missing"),
    "labels are a word": (put("labels", "cats"), "labels: wants a list"),
    "one label": (put("labels", ["a"]), "labels: wants two or more"),
    "one label twice": (put("labels", ["a", "a", "b"]), "labels: wants two or more different"),
    "a label leaves its folder": (put("labels", ["a", "b", "../c"]), "labels: '../c' cannot be"),
    "a label is a parent folder": (put("labels", ["a", "b", ".."]), "labels: '..' cannot be"),
    "a label is hidden": (put("labels", ["a", "b", ".c"]), "labels: '.c' cannot be"),
    "a label is absolute": (put("labels", ["a", "b", "/etc"]), "labels: '/etc' cannot be"),
    "a label is empty": (put("labels", ["a", "b", ""]), "labels: '' cannot be"),
    "a label has a NUL": (put("labels", ["a", "b", "c\0"]), "labels: 'c\\x00' cannot be"),
    "no input": (drop("input"), "input: 'input' is missing"),
    "no size": (drop("input", "size"), "input: 'size' is missing"),
    "a size that is no number": (put("input", "size", "big"), "input: invalid literal"),
    "a size below one": (put("input", "size", 0), "input: wants a size above 0"),
    "no views": (drop("input", "views"), "input: 'views' is missing"),
    "views are a word": (put("input", "views", "centre"), "input: wants a list"),
    "no decision": (drop("decision"), "decision: 'decision' is missing"),
    "no looks": (put(*LOOKS, []), "decision: wants one look or more"),
    "a look at a view that is not there": (put(*LOOKS, 0, "views", [2]), "decision: wants one look or more"),
    "a look at a view before the first": (put(*LOOKS, 0, "views", [-1]), "decision: wants one look or more"),
    "a look at nothing": (put(*LOOKS, 0, "views", []), "decision: wants views"),
    "a temperature of nought": (put(*LOOKS, 0, "temperature", 0), "decision: wants views, a temperature"),
    "a threshold that is no number": (put(*LOOKS, 0, "threshold", math.nan), "decision: wants views"),
    "no threshold": (drop(*LOOKS, 0, "threshold"), "decision: 'threshold' is missing"),
    "no feature length": (drop("feature_length"), "feature_length: 'feature_length' is missing"),
    "features of another length": (put("feature_length", 7), "decision: decision.safetensors: shapes"),
    "a familiarity without width": (put("decision", "familiarity", "scale", 0), "decision: wants a finite"),
    "a familiarity without centre": (drop("decision", "familiarity", "centre"), "decision: 'centre' is"),
    "statistics under no checksum": (drop("files", "decision.safetensors"), "files does not list decision"),
    "no name": (drop("name"), "name: 'name' is missing"),
    "no graph": (drop("graph"), "graph: 'graph' is missing"),
    "no precision": (drop("graph", "precision"), "graph: 'precision' is missing"),
    "no files": (drop("files"), "files is missing"),
    "files are a list": (put("files", []), "files is missing"),
    "a file outside": (put("files", "../secret", {}), "'../secret', which is not a plain file name"),
    "an absolute file": (put("files", "/etc/passwd", {}), "'/etc/passwd', which is not a plain"),
    "a file without checksum": (put("files", "model.xml", {}), "damaged"),
    "a checksum that is no entry": (put("files", "model.xml", "x"), "damaged"),
}


@pytest.mark.parametrize(("edit", "complaint"), DAMAGE.values(), ids=DAMAGE)
def test_a_field_that_makes_no_sense_is_refused_and_named(copied, edit, complaint):
    change(copied, edit)
    said = refusal(copied)
    assert str(copied) in said
    assert complaint in said


@pytest.mark.parametrize(
    "shape", [(3,), (), (3, 9), (2, 8), (3, 8, 1)], ids=["1-d", "0-d", "another rank", "classes", "3-d"]
)
def test_statistics_of_another_shape_are_refused(copied, shape):
    whitening = np.zeros((512, 8), np.float32)
    (copied / "decision.safetensors").unlink()
    save_file({"means": np.zeros(shape, np.float32), "whitening": whitening}, copied / "decision.safetensors")
    with pytest.raises(errors.ModelError, match=r"decision: decision\.safetensors: shapes"):
        reseal(copied)


def test_statistics_that_lack_an_array_are_refused(copied):
    (copied / "decision.safetensors").unlink()
    save_file({"means": np.zeros((3, 8), np.float32)}, copied / "decision.safetensors")
    with pytest.raises(errors.ModelError, match="'whitening' is missing"):
        reseal(copied)


def test_statistics_are_written_and_read_alike(copied):
    random = np.random.default_rng(0)
    written = Familiarity(
        means=random.normal(size=(8, 3)).astype(np.float32).T,  # not contiguous
        whitening=random.normal(size=(512, 8)).astype(np.float32),
        centre=1e6,
        scale=1.0,
    )
    (copied / "decision.safetensors").unlink()
    bundle.write_statistics(copied, written)
    read = reseal(copied).rule.familiarity
    assert (read.means == written.means).all()
    assert (read.whitening == written.whitening).all()


def test_a_bundle_without_a_familiarity_is_fine(copied):
    (copied / "decision.safetensors").unlink()
    change(copied, drop("decision", "familiarity"))
    assert reseal(copied).rule.familiarity is None


class Bomb:
    def __reduce__(self):
        return open, ("exploded", "w")


def reseal_and_open(folder, name):
    if name != "bundle.json":
        reseal(folder)
    open_classifier(folder, kind="torch" if name == "weights.safetensors" else "openvino")


@pytest.mark.parametrize("name", ["weights.safetensors", "decision.safetensors", "model.xml", "bundle.json"])
def test_a_pickle_bomb_in_any_file_is_refused_and_not_run(copied, name, monkeypatch):
    replace(copied / name, pickle.dumps(Bomb()))
    monkeypatch.chdir(copied.parent)
    with pytest.raises(errors.ModelError):
        reseal_and_open(copied, name)
    assert not Path("exploded").exists()


def test_a_seal_interrupted_before_its_end_leaves_no_bundle(trained, tmp_path, monkeypatch):
    folder = shutil.copytree(trained.path, tmp_path / "new", copy_function=os.link)
    (folder / "bundle.json").unlink()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("power cut")))
    with pytest.raises(OSError, match="power cut"):
        bundle.seal(folder, dict(trained.manifest))
    monkeypatch.undo()
    assert "no model here" in refusal(folder)


def test_what_a_trainer_kept_private_can_be_read_by_the_daemons_account(copied):
    replace(copied / "weights.safetensors", (copied / "weights.safetensors").read_bytes())
    (copied / "weights.safetensors").chmod(0o600)
    reseal(copied)
    modes = {path.stat().st_mode & 0o777 for path in copied.iterdir()}
    assert len(modes) == 1


def test_a_view_that_nobody_knows_how_to_make_is_refused(copied):
    manifest = json.loads((copied / bundle.MANIFEST).read_text())
    manifest["input"]["views"][0] = "fisheye"
    (copied / bundle.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(errors.ModelError, match=r"input: views fisheye are unknown"):
        bundle.load(copied)
