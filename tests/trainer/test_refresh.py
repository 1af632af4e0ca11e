"""Refreshes of a small model: the real daemon sorts drawn photos, a person moves some, the real command learns."""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

import drawn
from harness import Sandbox
from pawsort import bundle, config, errors
from pawsort.ledger import FILE, Ledger
from trainer import fit, production, refresh
from trainer.dataset import Side
from trainer.listener import Silent

ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Home(Sandbox):
    """A sandbox in which the small model serves, with what a person and the trainer do in it."""

    def __init__(self, folder: Path, made, shapes: Path, **trainer) -> None:
        self.models = folder / "models"
        shutil.copytree(made.bundle.path, self.models / "shapes-1")
        (self.models / "current").symlink_to("shapes-1")
        told = {"data": [str(shapes)], "epochs": 3, "nice": False} | trainer
        super().__init__(folder, self.models, threshold=0.0, trainer=told)

    def train(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "trainer", *arguments, "--config", str(self.config)]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env=ONE_THREAD, timeout=300
        )

    def settings(self, **trainer):
        values = yaml.safe_load(self.config.read_text())
        values["trainer"] |= trainer
        self.config.write_text(yaml.safe_dump(values))
        return config.load(self.config)

    def place(self, label, count, *, seed, drawn_as=None):
        return drawn.write_folder(self.sorted / label, drawn_as or label, count, size=80, seed=seed)

    @property
    def current(self) -> str:
        return os.readlink(self.models / "current")


@pytest.fixture
def home(tmp_path, made, shapes):
    return Home(tmp_path, made, shapes)


# -- One whole story --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def story(tmp_path_factory, made, shapes):
    """Photos sorted and corrected, two new class folders, a refresh; then some of it once more."""
    # A handful of test photos: one more or less must not decide this story. The gate has tests of its own.
    home = Home(tmp_path_factory.mktemp("story"), made, shapes, epochs=10, max_recall_loss=1.0)
    for label in drawn.LABELS:
        for photo in drawn.write_folder(home.folder / "arriving", label, 8, size=80, seed=50):
            photo.rename(home.inbox / photo.name)
    home.call("run", "--once", check=True)
    # What was sorted wrong goes where it belongs; one that was right goes to a wrong folder: a person's word all the same.
    moved = []
    for path in sorted(home.sorted.rglob("*.jpg")):
        label = path.name.split("-")[0]
        if path.parent.name != label:
            moved.append(path.rename(home.sorted / label / path.name))
    stray = min((home.sorted / "circles").iterdir())
    (home.sorted / "squares").mkdir(exist_ok=True)
    moved.append(stray.rename(home.sorted / "squares" / "stray.jpg"))
    home.place("kites", 24, seed=51)
    home.place("blobs", 5, seed=52)

    looked = home.train("refresh", "--json")
    home.looked, home.moved = looked, moved
    home.first = json.loads(looked.stdout)
    home.current_after_first = home.current
    again = home.train("refresh", "--json")
    home.again = again
    return home


def test_a_refresh_publishes_a_model_that_is_no_worse_and_makes_it_current(story):
    assert story.looked.returncode == 0, story.looked.stderr
    assert story.first["outcome"] == "published"
    assert story.current_after_first == story.first["model"] != "shapes-1"
    made = bundle.load(story.models / story.first["model"])
    assert made.parent == story.first["champion"] == "shapes-1"
    assert made.manifest["gate"]["passed"] is True
    assert made.manifest["gate"]["champion"] == "shapes-1"
    assert made.manifest["training"]["init"] == "current"
    listing = {entry["name"]: entry["state"] for entry in json.loads(story.call("models", "--json").stdout)}
    assert listing == {"shapes-1": "superseded", story.first["model"]: "current"}


def test_the_gate_asks_about_all_photos_that_neither_has_learned_from(story):
    made = bundle.load(story.models / story.first["model"]).manifest
    held_out = [digest for side in (Side.TEST, Side.VALIDATION) for digest in made["data"]["sides"][side]]
    assert made["gate"]["n"] == len(held_out) > made["metrics"]["test"]["n"]


def test_it_learns_from_people_and_leaves_the_daemon_s_guesses_out(story):
    origins = story.first["origins"]
    assert origins["corrected"] == len(story.moved)
    assert origins["placed"] == 29
    assert origins["predicted"] == 24 - len(story.moved)
    learned = bundle.load(story.models / story.first["model"]).manifest["data"]["counts"]
    together = {label: sum(sides.values()) for label, sides in learned.items()}
    assert sum(together.values()) == 3 * 48 + len(story.moved) + 24


def test_a_new_folder_with_enough_photos_becomes_a_class_and_the_daemon_sorts_into_it(story):
    assert set(bundle.load(story.models / story.first["model"]).labels) == {*drawn.LABELS, "kites"}
    [note] = [note for note in story.first["notes"] if "blobs" in note]
    assert "5 photos are too few for a class of its own (trainer.min_photos is 20)" in note
    photos = drawn.write_folder(story.folder / "arriving", "kites", 6, size=80, seed=53)
    for photo in photos:
        photo.rename(story.inbox / photo.name)
    story.call("run", "--once", check=True)
    assert sum((story.sorted / "kites" / photo.name).is_file() for photo in photos) >= 4


def test_a_photo_never_changes_sides(story, made):
    before = made.bundle.manifest["data"]["sides"]
    after = bundle.load(story.models / story.first["model"]).manifest["data"]["sides"]
    for side in Side:
        assert set(before[side]) <= set(after[side]), side


def test_a_refresh_with_nothing_new_says_so_and_changes_nothing(story):
    assert story.again.returncode == 0
    told = json.loads(story.again.stdout)
    assert (told["outcome"], told["champion"]) == ("nothing new", story.first["model"])
    assert sorted(path.name for path in story.models.iterdir() if not path.name.startswith(".")) == sorted(
        ["current", "shapes-1", story.first["model"]]
    )


def test_corrections_are_recorded_for_good(story):
    with Ledger(story.folder / "state" / FILE, read_only=True) as ledger:
        labels = Counter(label for label, _ in ledger.confirmations().values())
    assert sum(labels.values()) == len(story.moved)


def test_the_report_shows_what_the_new_model_fixes_and_breaks(story):
    page = (story.models / story.first["model"] / "report.html").read_text()
    gate = story.first["gate"]
    assert "Against shapes-1, the model before it" in page
    assert f"{gate['fixed']} it fixes, {gate['broken']} it breaks" in page


def test_rollback_brings_the_old_model_back_and_a_timer_does_not_undo_that(story):
    assert story.call("models", "rollback", check=True).stdout == "shapes-1 serves now\n"
    assert story.current == "shapes-1"
    told = json.loads(story.train("refresh", "--json").stdout)
    assert (told["outcome"], story.current) == ("nothing new", "shapes-1")
    story.call("models", "use", story.first["model"], check=True)


# -- The gate ---------------------------------------------------------------------------------------


@pytest.fixture
def spoiling(home):
    """A home where learning makes the model worse: its recipe says so fast that it forgets all it knows."""
    file = home.models / "shapes-1" / "bundle.json"
    manifest = json.loads(file.read_text())
    manifest["training"]["recipe"] |= {"rate": 3.0, "warm_up": 0.01, "averaging": 0.0}
    file.write_text(json.dumps(manifest))
    home.settings(epochs=1)
    home.place("circles", 6, seed=60)
    return home


def test_a_worse_model_is_refused_kept_with_the_reason_and_does_not_serve(spoiling):
    refused = spoiling.train("refresh", "--json")
    assert refused.returncode == 3, refused.stderr
    told = json.loads(refused.stdout)
    assert (told["outcome"], spoiling.current) == ("refused", "shapes-1")
    listing = {
        entry["name"]: entry["state"] for entry in json.loads(spoiling.call("models", "--json").stdout)
    }
    assert listing == {"shapes-1": "current", told["model"]: "refused"}
    gate = bundle.load(spoiling.models / told["model"]).manifest["gate"]
    assert gate["broken"] > gate["fixed"]
    assert "held-out photos and fixes only" in gate["reasons"][0]
    page = (spoiling.models / told["model"] / "report.html").read_text()
    assert "It is refused: the model before it goes on serving." in page
    assert "What it breaks" in page
    # The next one does not train again on the same photos; force does, lets it serve, and is recorded.
    assert json.loads(spoiling.train("refresh", "--json").stdout)["outcome"] == "nothing new"
    forced = spoiling.train("refresh", "--force")
    assert forced.returncode == 0, forced.stderr
    assert "serves all the same, because of --force" in forced.stdout
    assert spoiling.current not in {"shapes-1", told["model"]}
    gate = bundle.load(spoiling.models / spoiling.current).manifest["gate"]
    assert (gate["passed"], gate["forced"]) == (False, True)


# -- What it learns from ----------------------------------------------------------------------------


def test_the_model_s_own_folders_are_its_base_data_where_they_still_exist(made, shapes, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"inbox": "i", "sorted": "s", "models": str(made.bundle.path.parent)}))
    plan = refresh.look(config.load(file))
    assert [folder.resolve() for folder in plan.folders] == [shapes.resolve()]
    assert len(plan.found) == 3 * 48


def test_a_class_that_the_model_knows_is_never_forgotten_for_want_of_photos(home):
    settings = home.settings(data=[])
    home.place("circles", 5, seed=70)
    with pytest.raises(
        errors.DataError, match=r"class 'squares': shapes-1 knows it, and there are 0 photos.*trainer\.data"
    ):
        refresh.refresh(settings, "next", Silent())
    assert not (home.models / "next").exists()


def test_sorted_is_never_taken_for_base_data(home):
    home.place("circles", 5, seed=71)
    settings = home.settings(data=[str(home.sorted)])
    with pytest.raises(errors.DataError, match=r"trainer\.data: .* is in `sorted`"):
        refresh.look(settings)


def test_guesses_are_learned_from_only_when_trusted_and_never_tested_on(home, shapes):
    for photo in drawn.write_folder(home.folder / "arriving", "circles", 30, size=80, seed=72):
        photo.rename(home.inbox / photo.name)
    home.call("run", "--once", check=True)
    assert len(refresh.look(home.settings()).found) == 3 * 48
    assert len(refresh.look(home.settings(trust_after_days=1)).found) == 3 * 48
    plan = refresh.look(home.settings(trust_after_days=0))
    guesses = [photo for photo in plan.found if photo.origin == "predicted"]
    assert len(guesses) == 30


def test_a_photo_that_is_deleted_or_changed_in_base_data_is_something_new(home, tmp_path, shapes):
    data = shutil.copytree(shapes, tmp_path / "data")
    settings = home.settings(data=[str(data)])
    before = refresh.look(settings).fingerprint
    assert refresh.look(settings).fingerprint == before
    photo = min((data / "circles").iterdir())
    photo.unlink()
    without = refresh.look(settings).fingerprint
    placed = home.place("circles", 1, seed=73)[0]
    with_one = refresh.look(settings).fingerprint
    placed.unlink()
    assert len({before, without, with_one}) == 3
    assert refresh.look(settings).fingerprint == without


def test_a_photo_that_its_owner_deleted_is_forgotten_by_the_next_refresh(home):
    settings = home.settings(epochs=1, max_recall_loss=1.0)
    kept, deleted = home.place("circles", 2, seed=75)
    digest = hashlib.sha256(deleted.read_bytes()).hexdigest()
    index = settings.state / refresh.CACHE / f"index-1-{production.CACHE_SHORT_SIDE}.jsonl"

    def learned(name: str) -> set[str]:
        refresh.refresh(settings, name, Silent(), force=True)
        sides = bundle.load(home.models / name).manifest["data"]["sides"]
        return {met for digests in sides.values() for met in digests}

    assert digest in learned("next")
    assert digest in index.read_text()
    deleted.unlink()
    assert digest not in learned("after")
    assert digest not in index.read_text()
    assert hashlib.sha256(kept.read_bytes()).hexdigest() in index.read_text()


def test_a_refresh_sees_few_photos_more_often_unless_told_how_often(home):
    plan = refresh.look(home.settings())
    told = refresh._recipe(plan, None)
    assert (told.epochs, told.least_steps) == (refresh.EPOCHS, fit.Recipe().least_steps)
    assert fit.Recipe().least_steps > 0
    told = refresh._recipe(plan, 3)
    assert (told.epochs, told.least_steps) == (3, 0)


def test_the_old_model_has_its_share_in_the_new_one_unless_there_is_a_new_class(home):
    assert refresh._recipe(refresh.look(home.settings()), None).old_share == refresh.OLD_SHARE > 0
    home.place("kites", 24, seed=76)
    assert refresh._recipe(refresh.look(home.settings()), None).old_share == 0.0


def test_where_nobody_said_anything_yet_there_is_nothing_to_learn_from(home):
    drawn.write_folder(home.inbox, "circles", 3, size=80, seed=74)
    home.call("run", "--once", check=True)
    told = home.train("refresh")
    assert (told.returncode, told.stdout) == (
        0,
        "nothing to learn from: nobody has placed, moved or confirmed a sorted photo yet\n",
    )


# -- Alone, quickly, out of the way -----------------------------------------------------------------


def test_two_refreshes_never_run_at_once(home):
    settings = home.settings()
    settings.state.mkdir()
    with (settings.state / refresh.LOCK).open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(errors.PawsortError, match="another refresh is at work"):
            refresh.refresh(settings, "next", Silent())
        assert home.train("refresh").returncode == 1


def test_to_find_nothing_new_takes_no_pytorch(home):
    code = (
        "import sys; sys.modules['torch'] = sys.modules['openvino'] = None; from pathlib import Path; "
        "from pawsort import config; from trainer import refresh; from trainer.listener import Silent; "
        f"print(refresh.refresh(config.load(Path({str(home.config)!r})), 'next', Silent()).outcome)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "nothing new\n"


def test_idle_priority_is_taken_when_asked_and_inherited(home):
    told = []

    def learn() -> None:
        refresh._step_back(Silent())
        told.append(os.sched_getscheduler(0))
        told.append(
            int(subprocess.check_output([sys.executable, "-c", "import os; print(os.sched_getscheduler(0))"]))
        )

    thread = threading.Thread(target=learn)  # the policy is a thread's own, so the tests keep theirs
    thread.start()
    thread.join()
    assert told == [os.SCHED_IDLE, os.SCHED_IDLE]
    assert os.sched_getscheduler(0) != os.SCHED_IDLE


def test_a_refresh_that_is_stopped_leaves_everything_as_it_was(home):
    home.place("circles", 6, seed=80)
    settings = home.settings()
    before = time.time()
    with pytest.raises(errors.PawsortError, match="stopped; shapes-1 goes on serving"):
        refresh.refresh(settings, "next", Silent(), lambda: True)
    assert home.current == "shapes-1"
    assert sorted(path.name for path in home.models.iterdir() if path.is_dir()) == [
        ".checkpoints",
        "current",
        "shapes-1",
    ]
    assert list((home.models / ".checkpoints").iterdir()) == []
    assert not (settings.state / refresh.RECORD).exists()
    assert time.time() - before < 60
