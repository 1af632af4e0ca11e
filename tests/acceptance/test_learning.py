"""The loop played out with real photos: sort, put right what is wrong, refresh, and be better on photos nobody has seen.

A weak first model is made of 60 photos a class. The daemon sorts 600 others; a person moves those that lie in a wrong
folder, and takes those in review to their class. The new model learns from these moves alone, and from the first
model's own photos.
"""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness import Sandbox

FIRST, ARRIVING = 60, 200  # photos a class; nobody has seen the rest, five hundred and more
WRONG = 0.1  # share of the corrections that go to a wrong folder, in the second telling
DRAW = 7  # which photos: not 0, on whose photos the old weights' share and the gate's evidence were chosen

pytestmark = [pytest.mark.real, pytest.mark.long]


def train(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trainer", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, timeout=900)


@pytest.fixture(scope="module")
def begun(tmp_path_factory, shared):
    """A folder with the first model, 600 photos that it has sorted, and photos that are kept apart."""
    folder = tmp_path_factory.mktemp("begun")
    photos = random.Random(DRAW)
    for label in sorted(path.name for path in (shared / "data" / "animals").iterdir()):
        names = sorted((shared / "data" / "animals" / label).iterdir())
        photos.shuffle(names)
        parts = names[:FIRST], names[FIRST : FIRST + ARRIVING], names[FIRST + ARRIVING :]
        for place, part in zip(("small", "arriving", "unseen"), parts, strict=True):
            (folder / place / label).mkdir(parents=True)
            for photo in part:
                shutil.copy(photo, folder / place / label)
    first = train(
        folder,
        *("fit", "--data", "small", "--init", str(shared / "weights" / "resnet18-backbone.pth")),
        *("--out", "models", "--name", "first", "--cache", "cache"),
    )
    assert first.returncode == 0, first.stderr
    box = Sandbox(folder, Path("models"))
    for photo in (folder / "arriving").glob("*/*"):
        shutil.copy(photo, box.inbox / f"{photo.parent.name}--{photo.name}")
    box.call("run", "--once", check=True)
    return folder


@pytest.fixture
def box(begun, tmp_path):
    """A copy of all that, to go on with."""
    trainer = {"data": [str(begun / "small")], "nice": False}
    box = Sandbox(tmp_path, Path("models"), trainer=trainer)
    for name in ("models", "sorted", "review", "state"):
        shutil.copytree(begun / name, tmp_path / name, symlinks=True)
    return box


def correct(box: Sandbox, *, wrong: float) -> tuple[int, int]:
    """Move what lies in a wrong folder or in review to where it belongs, a share of it elsewhere. (moved, wrongly)"""
    chance = random.Random(1)
    labels = sorted({path.name.split("--")[0] for path in box.sorted.glob("*/*")})
    moved = astray = 0
    for path in sorted([*box.sorted.glob("*/*"), *box.review.glob("*")]):
        label = path.name.split("--")[0]
        if path.parent.name == label:
            continue
        if chance.random() < wrong:
            label = chance.choice([other for other in labels if other != label])
            astray += 1
        (box.sorted / label).mkdir(exist_ok=True)
        path.rename(box.sorted / label / path.name)
        moved += 1
    return moved, astray


def accuracy(folder: Path, begun: Path, model: str) -> float:
    """Share of the photos kept apart that a model has right."""
    judged = train(folder, "evaluate", "--data", str(begun / "unseen"), "--model", model, "--json")
    assert judged.returncode == 0, judged.stderr
    told = json.loads(judged.stdout)
    assert told["learned_from"] == 0
    return told["accuracy"]


@pytest.fixture(scope="module")
def before(begun):
    """What the first model has right."""
    return accuracy(begun, begun, "first")


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [0.0, WRONG], ids=["corrected rightly", "one correction in ten is wrong"])
def test_corrections_make_the_model_better_and_never_worse(box, begun, before, wrong, capsys):
    moved, astray = correct(box, wrong=wrong)
    refreshed = train(box.folder, "refresh", "--json")
    assert refreshed.returncode in {0, 3}, refreshed.stderr
    told = json.loads(refreshed.stdout)
    after = accuracy(box.folder, begun, "current")
    made = accuracy(box.folder, begun, told["model"]) if told["outcome"] == "refused" else after
    with capsys.disabled():
        print(
            f"\n  {moved} of {3 * ARRIVING} photos moved, {astray} of them to a wrong folder; on photos kept apart the "
            f"first model has {before:.2%} right, the second {made:.2%} ({told['outcome']}; on "
            f"{told['gate']['n']} held-out photos {told['gate']['fixed']} fixed, {told['gate']['broken']} broken, "
            f"p = {told['gate']['p_value']:.3g}); {after:.2%} is what serves"
        )
    if told["outcome"] == "refused":
        assert after == before
    assert after >= before
    if not wrong:
        assert told["outcome"] == "published"
        assert after > before
