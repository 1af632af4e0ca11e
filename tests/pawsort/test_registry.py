import json
import os
import shutil
import threading

import pytest

from pawsort import bundle, errors, registry
from pawsort.registry import Registry


@pytest.fixture
def models(tmp_path):
    return Registry(tmp_path / "models")


@pytest.fixture
def shipped(trained, monkeypatch):
    """The model that comes with pawsort, whatever this source tree ships."""
    monkeypatch.setattr(registry, "shipped", lambda: trained.path)
    return trained.path


def stage(models, trained, name):
    staged = models.staging(name)
    shutil.copytree(trained.path, staged, dirs_exist_ok=True, copy_function=os.link)
    return staged


def damage(folder):
    """Replace a file, not its bytes: they are the fixture's too."""
    (folder / "model.bin").unlink()
    (folder / "model.bin").write_bytes(b"")


def publish(models, trained, name):
    return models.publish(stage(models, trained, name), name)


def test_where_there_is_no_model_the_shipped_one_serves(models, shipped):
    assert models.current() == shipped
    models.root.mkdir()
    assert models.current() == shipped
    assert models.path("current") == shipped


def test_the_shipped_model_is_listed_when_it_serves(models, shipped, trained):
    assert [(entry["name"], entry["state"]) for entry in models.listing()] == [(trained.name, "current")]


def test_an_installation_without_any_model_says_how_to_get_one(monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "__file__", str(tmp_path / "pawsort" / "registry.py"))
    with pytest.raises(errors.ModelError, match="pawsort-train fit"):
        registry.shipped()


@pytest.mark.parametrize("place", ["pawsort/shipped", "models/current"])
def test_the_shipped_model_is_found_in_a_wheel_and_in_the_source_tree(monkeypatch, tmp_path, trained, place):
    monkeypatch.setattr(registry, "__file__", str(tmp_path / "pawsort" / "registry.py"))
    shutil.copytree(trained.path, tmp_path / place, copy_function=os.link)
    assert registry.shipped() == tmp_path / place


def test_a_published_model_is_there_and_does_not_serve_by_that(models, shipped, trained):
    publish(models, trained, "one")
    assert models.names() == ["one"]
    models.use("one")
    publish(models, trained, "two")
    assert models.current() == models.root / "one"


def test_models_without_a_current_one_are_an_error_with_its_remedy(models, trained):
    publish(models, trained, "one")
    with pytest.raises(errors.ModelError, match="pawsort models use NAME"):
        models.current()


def test_use_changes_the_current_model(models, trained):
    for name in ("one", "two"):
        publish(models, trained, name)
        models.use(name)
        assert models.current() == models.root / name
    assert os.readlink(models.root / "current") == "two"  # relative: the folder may be moved as a whole


def test_using_the_current_model_changes_nothing(models, trained):
    publish(models, trained, "one")
    models.use("one")
    models.use("current")
    assert models.current() == models.root / "one"


@pytest.mark.parametrize("target", ["gone", "current"])
def test_a_link_to_nowhere_is_told_with_its_remedy(models, target):
    models.root.mkdir()
    (models.root / "current").symlink_to(target)
    with pytest.raises(errors.ModelError, match=f"points to {target}, which is no model; run"):
        models.current()


def test_a_damaged_model_cannot_be_used_and_the_old_one_stays(models, trained):
    for name in ("one", "two"):
        publish(models, trained, name)
    models.use("one")
    damage(models.root / "two")
    with pytest.raises(errors.ModelError, match="damaged"):
        models.use("two")
    assert models.current() == models.root / "one"


def test_a_model_that_is_not_there_is_told_with_those_that_are(models, trained):
    publish(models, trained, "one")
    with pytest.raises(errors.ModelError, match="no model named 'two'; there are: one"):
        models.use("two")


def test_a_damaged_model_is_not_published(models, trained):
    staged = stage(models, trained, "one")
    damage(staged)
    with pytest.raises(errors.ModelError, match="damaged"):
        models.publish(staged, "one")
    assert models.names() == []


@pytest.mark.parametrize("there", ["a model", "an empty folder", "a link"])
def test_a_name_that_is_taken_is_never_replaced(models, trained, there):
    staged = stage(models, trained, "one")
    if there == "a model":
        shutil.copytree(trained.path, models.root / "one", copy_function=os.link)
    elif there == "an empty folder":
        (models.root / "one").mkdir()
    else:
        (models.root / "one").symlink_to(trained.path)
    before = sorted((models.root / "one").iterdir())
    with pytest.raises(errors.ModelError, match="a model of that name already"):
        models.publish(staged, "one")
    with pytest.raises(errors.ModelError, match="choose another --name"):
        models.staging("one")
    assert sorted((models.root / "one").iterdir()) == before


@pytest.mark.parametrize("name", ["", "current", ".hidden", "../one", "a/b"])
def test_what_cannot_be_a_models_name_is_refused(models, name):
    with pytest.raises(errors.ModelError, match="cannot be the name of a model"):
        models.staging(name)


def test_what_a_broken_off_training_left_is_ignored_and_then_replaced(models, shipped, trained):
    stage(models, trained, "one")
    assert models.names() == []
    assert models.current() == shipped
    assert list(models.staging("one").iterdir()) == []


def test_a_reader_sees_a_new_model_whole_or_not_at_all_and_always_a_current_one(models, trained):
    publish(models, trained, "first")
    models.use("first")
    seen, failures, stop = set(), [], threading.Event()

    def read():
        while not stop.is_set():
            try:
                bundle.load(models.current())
                for name in models.names():
                    bundle.read_manifest(models.root / name)
                    seen.add(name)
            except (errors.ModelError, OSError) as error:
                failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(4):
            publish(models, trained, f"m{number}")
            models.use(f"m{number}")
    finally:
        stop.set()
        reader.join()
    assert failures == []
    assert "first" in seen


def test_models_are_listed_oldest_first_with_their_state_and_figures(models, trained):
    for age, name in enumerate(["b", "a"]):
        folder = publish(models, trained, name)
        os.utime(folder, (1000 + age, 1000 + age))
        manifest = json.loads((folder / "bundle.json").read_text())
        (folder / "bundle.json").unlink()
        (folder / "bundle.json").write_text(json.dumps(manifest | {"name": name}))
        os.utime(folder, (1000 + age, 1000 + age))
    models.use("a")
    listing = models.listing()
    assert [(entry["name"], entry["state"]) for entry in listing] == [("b", "kept"), ("a", "current")]
    assert listing[0]["metrics"] == {"test": {"accuracy": 0.9}}
    assert listing[0]["against_the_one_before"] is None


def test_what_a_model_and_the_one_before_had_right_of_the_same_photos_is_listed(models, trained):
    gate = {"passed": True, "n": 50, "accuracy": {"champion": 0.8, "challenger": 0.9}}
    models.publish(with_fields(stage(models, trained, "b"), gate=gate), "b")
    assert models.listing()[0]["against_the_one_before"] == {"accuracy": 0.9, "before": 0.8, "n": 50}


def refused(models, trained, name, **gate):
    """Publish a model that the gate refused."""
    staged = stage(models, trained, name)
    return models.publish(with_fields(staged, gate={"passed": False, **gate}), name)


def with_fields(folder, **fields):
    """Change bundle.json, not the fixture's."""
    manifest = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").unlink()
    (folder / "bundle.json").write_text(json.dumps(manifest | fields))
    return folder


def interrupt(*_):
    raise KeyboardInterrupt


def states(models):
    return {entry["name"]: entry["state"] for entry in models.listing()}


def test_a_model_that_loads_and_does_not_answer_is_not_published(models, trained):
    staged = with_fields(stage(models, trained, "one"), labels=["a", "b"])
    (staged / "decision.safetensors").unlink()
    manifest = json.loads((staged / "bundle.json").read_text())
    del manifest["files"]["decision.safetensors"], manifest["decision"]["familiarity"]
    (staged / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(errors.ModelError, match="answered with shapes"):
        models.publish(staged, "one")
    assert models.names() == []


def test_rollback_goes_back_step_by_step_and_ends_at_the_shipped_model(models, trained, shipped):
    for name in ("one", "two", "three"):
        publish(models, trained, name)
    for name in ("one", "two", "three", "two"):
        models.use(name)
    served = []
    for _ in range(4):
        models.rollback()
        served.append(models.current())
    assert served == [models.root / "three", models.root / "two", models.root / "one", shipped]
    with pytest.raises(errors.ModelError, match="no model served before this one"):
        models.rollback()
    assert models.current() == shipped


def test_after_a_rollback_forward_is_a_new_step(models, trained):
    for name in ("one", "two"):
        publish(models, trained, name)
        models.use(name)
    assert models.rollback() == "one"
    models.use("two")
    assert models.rollback() == "one"


def test_rollback_steps_over_a_model_that_was_removed(models, trained):
    for name in ("one", "two", "three"):
        publish(models, trained, name)
        models.use(name)
    shutil.rmtree(models.root / "two")
    assert models.rollback() == "one"


def test_rollback_to_a_damaged_model_changes_nothing(models, trained):
    for name in ("one", "two"):
        publish(models, trained, name)
        models.use(name)
    damage(models.root / "one")
    with pytest.raises(errors.ModelError, match="damaged"):
        models.rollback()
    assert models.current() == models.root / "two"


def test_without_a_record_rollback_goes_to_the_parent(models, trained):
    publish(models, trained, "one")
    models.publish(with_fields(stage(models, trained, "two"), parent="one"), "two")
    models.use("two")
    (models.root / ".served.json").unlink()
    assert models.rollback() == "one"


def test_a_step_that_a_crash_kept_from_being_taken_is_no_way_back(models, trained, monkeypatch):
    for name in ("one", "two", "three"):
        publish(models, trained, name)
    models.use("one")
    models.use("two")
    with monkeypatch.context() as patched:
        patched.setattr(models, "_link", interrupt)
        with pytest.raises(KeyboardInterrupt):
            models.use("three")
    assert models.rollback() == "one"


def test_states_tell_what_serves_what_served_and_what_was_refused(models, trained):
    for name in ("first", "second", "spare"):
        publish(models, trained, name)
    refused(models, trained, "worse")
    refused(models, trained, "overruled", forced=True)
    models.use("first")
    models.use("second")
    shown = {
        path.name: json.loads((path / "bundle.json").read_text())
        for path in models.root.iterdir()
        if path.is_dir()
    }
    for name, manifest in shown.items():
        if not (models.root / name).is_symlink():
            with_fields(models.root / name, **(manifest | {"name": name}))
    assert states(models) == {
        "first": "superseded",
        "second": "current",
        "spare": "kept",
        "worse": "refused",
        "overruled": "kept",
    }


def test_the_shipped_model_goes_on_serving_beside_refused_ones(models, trained, shipped):
    refused(models, trained, "worse")
    assert models.current() == shipped


def test_the_oldest_models_are_pruned_but_never_current_parent_or_spared_ones(models, trained):
    names = [f"m{number}" for number in range(7)]
    for age, name in enumerate(names):
        folder = models.publish(with_fields(stage(models, trained, name), parent="m0"), name)
        os.utime(folder, (1000 + age, 1000 + age))
    models.use("m4")
    assert models.prune(3, spare={"m2"}) == ["m1", "m3", "m5", "m6"]
    assert models.names() == ["m0", "m2", "m4"]
    assert models.current() == models.root / "m4"


def test_pruning_takes_no_more_than_it_has_to(models, trained):
    for age, name in enumerate("abc"):
        os.utime(publish(models, trained, name), (1000 + age, 1000 + age))
    models.use("c")
    assert models.prune(2) == ["a"]
    assert models.prune(5) == []
    assert models.names() == ["b", "c"]


def test_what_a_broken_off_removal_left_is_no_model_and_is_removed_by_the_next(models, trained):
    publish(models, trained, "one")
    models.use("one")
    publish(models, trained, "two").rename(models.root / ".two.gone")
    assert models.names() == ["one"]
    models.prune(5)
    assert not (models.root / ".two.gone").exists()


def test_refused_models_are_pruned_beside_the_shipped_one_too(models, trained, shipped):
    for age, name in enumerate("abc"):
        os.utime(refused(models, trained, name), (1000 + age, 1000 + age))
    assert models.prune(2) == ["a"]
    assert models.current() == shipped


def test_the_shipped_model_serves_on_while_a_new_one_is_published_and_can_be_gone_back_to(
    models, trained, shipped
):
    models.hold_current()
    publish(models, trained, "one")
    assert models.current() == shipped
    models.use("one")
    models.rollback()
    assert models.current() == shipped
