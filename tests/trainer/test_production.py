"""One fit from folders to a model, and what is measured with it."""

import dataclasses
import json

import numpy as np
import pytest

import drawn
from pawsort import bundle, classifier, engine, errors, image, network, registry
from trainer import dataset, evaluate, examination, fit, production, serving
from trainer.dataset import Side
from trainer.listener import Silent


def test_model_tells_drawn_photos_apart_as_the_daemon_would(made, tmp_path):
    unseen = drawn.write_classes(tmp_path, 20, size=80, seed=3)
    document, skipped = examination.examine(
        [unseen], str(made.bundle.path), tmp_path, None, kind="openvino", unseen=False, listener=Silent()
    )
    assert document["accuracy"] > 0.8
    assert document["n"] == 60
    assert document["learned_from"] == 0
    assert skipped == ()


def test_figures_in_the_bundle_are_those_of_its_test_photos(made, order):
    manifest = made.bundle.manifest
    assert manifest["metrics"]["test"]["n"] == len(manifest["data"]["sides"]["test"])
    assert made.metrics["n"] == sum(sides["test"] for sides in manifest["data"]["counts"].values())
    assert {
        "accuracy",
        "per_class",
        "confusion",
        "auto_sorted",
        "auto_sorted_precision",
        "ece",
    } <= made.metrics.keys()
    assert {"other_auroc", "other_auto_sorted"} <= made.metrics.keys()


def test_bundle_tells_how_it_was_made(made):
    manifest = made.bundle.manifest
    assert manifest["training"]["seed"] == 0
    assert manifest["training"]["recipe"]["epochs"] == 6
    assert len(manifest["training"]["history"]["validation"]) == 6
    assert manifest["versions"]["torch"]
    assert len(manifest["data"]["fingerprint"]) == 64
    assert manifest["decision"]["chosen"]["target_precision"] == 0.995
    assert manifest["graph"]["quantization_check"]["photos"] > 50
    assert json.loads((made.bundle.path / bundle.MANIFEST).read_text())["labels"] == list(drawn.LABELS)


def test_first_model_becomes_current_and_loads(made):
    assert made.made_current
    shelf = registry.Registry(made.bundle.path.parent)
    assert shelf.current() == made.bundle.path.resolve()
    opened = bundle.load(shelf.current())
    classifier.Classifier(opened, engine.open_engine("openvino", opened)).smoke_test()


def test_weights_are_those_of_the_graph(made):
    pictures = np.stack([drawn.draw(drawn.LABELS[seed % 3], seed, made.bundle.size) for seed in range(60)])
    answers = [engine.open_engine(kind, made.bundle).infer(pictures)[0] for kind in ("openvino", "torch")]
    agree = (answers[0].argmax(1) == answers[1].argmax(1)).mean()
    assert agree > 0.95


def test_no_checkpoint_is_left_behind(made):
    assert not list(made.bundle.path.parent.rglob("*.pt"))
    assert not list(made.bundle.path.parent.glob("*.part"))


def test_name_that_is_taken_is_refused_before_any_work(made, order):
    with pytest.raises(errors.DataError, match="shapes-1: there is a model of that name already"):
        production.make(order(models=made.bundle.path.parent), Silent())


def test_refit_with_the_same_seed_gives_the_same_figures_and_starts_from_current(made, order):
    again = production.make(order(name="shapes-again", recipe=made_recipe(made)), Silent())
    figures = ("accuracy", "confusion", "auto_sorted", "auto_sorted_precision", "ece")
    assert {key: made.metrics[key] for key in figures} == {key: again.metrics[key] for key in figures}
    assert again.bundle.manifest["data"]["fingerprint"] == made.bundle.manifest["data"]["fingerprint"]
    assert again.bundle.rule.looks == made.bundle.rule.looks


def made_recipe(made) -> fit.Recipe:
    recipe = dict(made.bundle.manifest["training"]["recipe"])
    recipe["augmentation"] = fit.augment.Augmentation(**recipe["augmentation"])
    return fit.Recipe(**recipe)


def test_start_from_current_keeps_every_photo_on_its_side_and_names_the_parent(made, order, tmp_path, shapes):
    more = drawn.write_classes(tmp_path / "more", 6, size=80, seed=8)
    recipe = dataclasses.replace(made_recipe(made), epochs=1)
    second = production.make(
        order(
            data=(shapes, more),
            init="current",
            name="shapes-2",
            models=made.bundle.path.parent,
            recipe=recipe,
        ),
        Silent(),
    )
    assert second.bundle.parent == "shapes-1"
    assert not second.made_current
    before, after = (model.bundle.manifest["data"]["sides"] for model in (made, second))
    for side in Side:
        assert set(before[side]) <= set(after[side])


def test_uneven_classes_with_names_in_any_script(order, weights, tmp_path):
    data = tmp_path / "data"
    for label, count in (("кошки", 60), ("犬 <b>&", 4), ("Füchse", 12)):
        drawn.write_folder(data / label, label, count, size=80)
    (data / "кошки" / "broken.jpg").write_bytes(b"\xff\xd8\xff nonsense")
    recipe = dataclasses.replace(order().recipe, epochs=2)
    made = production.make(order(data=(data,), models=tmp_path / "models", recipe=recipe), Silent())
    assert made.bundle.labels == ("Füchse", "кошки", "犬 <b>&")
    assert [skipped.path.name for skipped in made.skipped] == ["broken.jpg"]
    assert all(row["n"] >= 1 for row in made.metrics["per_class"].values())
    page = (made.bundle.path / bundle.REPORT).read_text()
    assert "犬 &lt;b&gt;&amp;" in page
    assert "<b>&" not in page


def test_untrustworthy_int8_falls_back_to_float_and_says_so(shapes, cache, order):
    """Three heads that differ by next to nothing: the rounding of int8 decides many photos differently."""
    import torch

    notes = []

    class Listener(Silent):
        def note(self, text):
            notes.append(text)

    torch.manual_seed(5)
    model = network.build(3).eval()
    with torch.no_grad():
        model.fc.weight[:] = model.fc.weight[0] + 1e-3 * torch.randn(3, network.FEATURES)
        model.fc.bias.zero_()
    found = dataset.find([shapes])
    with production.PhotoCache(cache, short_side=production.CACHE_SHORT_SIDE) as photos:
        filled = photos.fill([photo.path for photo in found], limits=image.Limits(), workers=1)
        data = dataset.assemble(found, filled.sha256, photos)
        train, validation = (
            serving.CachedPhotos(data.on(side), data.labels, photos) for side in (Side.TRAIN, Side.VALIDATION)
        )
        _, told = serving.serving_graph(model, train, validation, size=48, seed=0, listener=Listener())
    assert told["precision"] == "float"
    assert told["quantization_check"]["labels_moved"] > 0.005
    assert "keeps its float graph" in notes[0]


# -- Evaluate ---------------------------------------------------------------------------------------


def test_unseen_leaves_out_what_was_learned_from(made, shapes, tmp_path):
    sides = made.bundle.manifest["data"]["sides"]
    document, _ = examination.examine(
        [shapes], str(made.bundle.path), tmp_path, None, kind="openvino", unseen=True, listener=Silent()
    )
    assert document["n"] == len(sides["validation"]) + len(sides["test"])
    assert document["learned_from"] == 0


def test_photos_of_a_class_the_model_does_not_know_count_as_wrong(made, tmp_path):
    data = drawn.write_classes(tmp_path, 3, size=80, labels=("circles", "hexagons"))
    document, _ = examination.examine(
        [data], str(made.bundle.path), tmp_path, None, kind="openvino", unseen=False, listener=Silent()
    )
    assert document["per_class"]["hexagons"] == {"recall": 0.0, "precision": None, "n": 3}
    assert sum(document["confusion"]["hexagons"].values()) == 3
    assert document["accuracy"] <= 0.5


def test_unreadable_photos_are_named_and_not_counted(made, tmp_path):
    data = drawn.write_classes(tmp_path, 3, size=80)
    (data / "circles" / "notes.txt").write_text("hello")
    document, skipped = examination.examine(
        [data], str(made.bundle.path), tmp_path, None, kind="openvino", unseen=False, listener=Silent()
    )
    assert (document["n"], document["skipped"]) == (9, 1)
    assert [photo.path.name for photo in skipped] == ["notes.txt"]


def test_missing_model_is_named(tmp_path):
    with pytest.raises(errors.ModelError, match="no model named 'nobody'"):
        examination.locate("nobody", tmp_path)
    with pytest.raises(errors.ModelError, match="no model here"):
        examination.locate(str(tmp_path), tmp_path)


@pytest.mark.real
def test_shipped_model_holds_its_promises_on_photos_it_never_met(shared, root):
    """The test split of the shipped model, from the files, through the daemon's own decoders, graph and rule."""
    opened = bundle.load(registry.Registry(root / "models").current())
    tested = set(opened.manifest["data"]["sides"]["test"])
    found = dataset.find([shared / "data" / "animals"])
    by_content = {digest: photo for photo in found for digest in [_sha256(photo.path)] if digest in tested}
    judge = classifier.Classifier(opened, engine.open_engine("openvino", opened))
    judged = evaluate.judge(
        judge,
        [photo.path for photo in by_content.values()],
        [photo.label for photo in by_content.values()],
        limits=image.Limits(),
        workers=2,
    )
    figures = evaluate.metrics(judged.photos, opened.labels)
    assert len(judged.photos) == len(tested)
    assert figures["accuracy"] >= 0.975
    assert figures["auto_sorted_precision"] >= 0.99
    assert figures["auto_sorted"] >= 0.9
    others = sorted((shared / "data" / "other").iterdir())
    strangers = evaluate.judge(judge, others, [None] * len(others), limits=image.Limits(), workers=2)
    assert evaluate.other_metrics(judged.photos, strangers.photos)["other_auroc"] >= 0.99


def _sha256(path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()
