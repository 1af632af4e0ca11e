import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

import tinymodel
from pawsort import errors
from pawsort.engine import open_engine


@pytest.fixture(scope="module")
def engines(trained):
    return {kind: open_engine(kind, trained, threads=1) for kind in ("openvino", "torch")}


def test_both_engines_give_the_same_labels(engines):
    pictures, _ = tinymodel.pictures(200)
    (ours, our_features), (theirs, their_features) = (
        engines[kind].infer(pictures) for kind in ("openvino", "torch")
    )
    assert len(set(ours.argmax(axis=1))) == 3
    # Either may calculate in bfloat16, with 8 bits of precision: only a photo on the fence may fall to either side.
    first, second = np.sort(ours, axis=1)[:, ::-1][:, :2].T
    clear = first - second > 0.5
    assert clear.mean() > 0.8
    assert (ours.argmax(axis=1) == theirs.argmax(axis=1))[clear].all()
    assert np.abs(ours - theirs).mean() < 0.1
    assert np.abs(our_features - their_features).mean() < 0.05 * np.abs(our_features).mean()


@pytest.mark.parametrize("kind", ["openvino", "torch"])
def test_an_answer_has_logits_and_features_of_every_picture(engines, kind):
    logits, features = engines[kind].infer(tinymodel.pictures(5)[0])
    assert (logits.shape, logits.dtype) == ((5, 3), np.float32)
    assert (features.shape, features.dtype) == ((5, 512), np.float32)


@pytest.mark.parametrize("kind", ["openvino", "torch"])
def test_an_answer_is_not_overwritten_by_the_next(engines, kind):
    pictures, _ = tinymodel.pictures(2)
    first, first_features = engines[kind].infer(pictures[:1])
    kept, kept_features = first.copy(), first_features.copy()
    engines[kind].infer(pictures[1:])
    assert (first == kept).all()
    assert (first_features == kept_features).all()


@pytest.mark.parametrize("kind", ["openvino", "torch"])
def test_pictures_that_are_a_view_of_something_larger_are_read_right(engines, kind):
    pictures, _ = tinymodel.pictures(4)
    every_other = engines[kind].infer(pictures[::2])[0]
    mirrored = engines[kind].infer(pictures[:, :, ::-1])[0]
    assert np.allclose(every_other, engines[kind].infer(pictures[::2].copy())[0], atol=1e-2)
    assert np.allclose(mirrored, engines[kind].infer(pictures[:, :, ::-1].copy())[0], atol=1e-2)


def test_auto_takes_openvino_where_it_is_installed(trained):
    assert open_engine("auto", trained).name == "openvino"


def test_auto_takes_torch_where_openvino_is_not_installed(trained, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "openvino" else find_spec(name)
    )
    assert open_engine("auto", trained).name == "torch"


@pytest.mark.parametrize("kind", ["openvino", "torch"])
def test_an_engine_that_is_not_installed_is_named_with_the_remedy(trained, monkeypatch, kind):
    monkeypatch.setitem(sys.modules, kind, None)
    with pytest.raises(
        errors.ModelError, match=f"engine {kind}: .* not installed; `pip install .*set engine: "
    ):
        open_engine(kind, trained)


def test_a_graph_that_openvino_cannot_read_is_named(copied, trained):
    (copied / "model.xml").unlink()
    (copied / "model.xml").write_text("<net>nonsense")
    broken = trained.__class__(**{**trained.__dict__, "path": copied})
    with pytest.raises(errors.ModelError, match=r"model\.xml: is no OpenVINO graph"):
        open_engine("openvino", broken)


def test_weights_for_another_number_of_classes_are_refused(trained):
    mistaken = trained.__class__(**{**trained.__dict__, "labels": ("a", "b")})
    with pytest.raises(errors.ModelError, match=r"weights\.safetensors: .* 2 outputs"):
        open_engine("torch", mistaken)


def test_a_compiled_model_is_kept_in_the_cache_folder_when_one_is_given(trained, tmp_path):
    open_engine("openvino", trained, cache=tmp_path / "cache")
    assert any((tmp_path / "cache").iterdir())


def test_openvino_is_loaded_without_the_package_that_reports_usage(trained, tmp_path):
    """It would leave a number for this machine in the home folder, and be ready to send."""
    script = (
        "import sys; from pathlib import Path; from pawsort import bundle, engine\n"
        "engine.open_engine('openvino', bundle.load(Path(sys.argv[1])))\n"
        "assert sys.modules['openvino_telemetry'] is None"
    )
    environment = {**os.environ, "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", script, trained.path], check=True, env=environment)
    assert not list(tmp_path.iterdir())
