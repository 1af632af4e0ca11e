"""Another model takes over while photos keep coming; and decisions can be taken back."""

import json
import shutil
import signal
import sqlite3
from pathlib import Path

import pytest

import drawn
from harness import Sandbox, wait_until


@pytest.fixture
def box(tmp_path, tiny_model):
    """A sandbox with a models folder of its own: shapes-1 serves, shapes-2 is the same by another name."""
    models = tmp_path / "models"
    models.mkdir()
    shutil.copytree(tiny_model, models / "shapes-1")
    _rename(models / "shapes-1", "shapes-1")
    _copy_model(models, "shapes-2")
    _use(models, "shapes-1")
    return Sandbox(tmp_path, models, threshold=0.0)


def test_the_daemon_notices_a_new_current_model_by_itself(box):
    with box.running() as daemon:
        assert daemon.wait_for("ready")["model"] == "shapes-1"
        box.call("models", "use", "shapes-2", check=True)
        changed = daemon.wait_for("model changed")
        assert (changed["before"], changed["model"]) == ("shapes-1", "shapes-2")
        drawn.write(box.inbox / "new.jpg", drawn.draw("circles", 1))
        assert daemon.wait_for_photo("new.jpg")["model"] == "shapes-2"
        assert wait_until(lambda: box.status()["model"] == "shapes-2", "the new model in status")


def test_a_model_that_does_not_load_is_refused_and_the_old_one_goes_on_with_the_reason_in_status(box):
    models = box.folder / "models"
    _copy_model(models, "broken")
    (models / "broken" / "model.bin").write_bytes(b"no weights at all")
    with box.running() as daemon:
        _use(models, "broken")
        assert "damaged" in daemon.wait_for("model refused")["reason"]
        drawn.write(box.inbox / "photo.jpg", drawn.draw("circles", 2))
        assert daemon.wait_for_photo("photo.jpg")["model"] == "shapes-1"
        status = wait_until(lambda: (now := box.status())["degraded"] and now, "degraded in status")
        assert "broken was refused, shapes-1 goes on serving" in status["degraded"]["model"]
        _use(models, "shapes-2")
        daemon.wait_for("model changed", model="shapes-2")
        wait_until(lambda: not box.status()["degraded"], "healthy again")
    assert [line["event"] for line in daemon.lines].count("model refused") == 1


def test_sighup_looks_again_at_a_model_that_was_refused(box):
    models = box.folder / "models"
    _copy_model(models, "mended")
    whole = (models / "mended" / "model.bin").read_bytes()
    (models / "mended" / "model.bin").write_bytes(whole[:-1])
    with box.running() as daemon:
        _use(models, "mended")
        daemon.wait_for("model refused")
        (models / "mended" / "model.bin").write_bytes(whole)
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for("model changed", model="mended")


def test_a_model_that_wants_other_pictures_takes_over_too(box):
    models = box.folder / "models"
    _copy_model(models, "one-view")
    manifest = json.loads((models / "one-view" / "bundle.json").read_text())
    manifest["input"]["views"] = manifest["input"]["views"][:1]
    manifest["decision"]["looks"] = [{**manifest["decision"]["looks"][0], "views": [0]}]
    (models / "one-view" / "bundle.json").write_text(json.dumps(manifest))
    with box.running() as daemon:
        for number in range(60):
            drawn.write(box.inbox / f"{number}.jpg", drawn.draw("circles", number))
        daemon.wait_for("sorted")
        _use(models, "one-view")
        daemon.wait_for("model changed", model="one-view")
        for number in range(60):
            daemon.wait_for_photo(f"{number}.jpg")
        drawn.write(box.inbox / "last.jpg", drawn.draw("circles", 99))
        assert daemon.wait_for_photo("last.jpg")["model"] == "one-view"


def test_under_load_with_many_swaps_every_photo_is_filed_once_by_a_model_that_existed(box):
    photos, swaps = 2000, 20
    models = box.folder / "models"
    pictures = [drawn.encode(drawn.draw(drawn.LABELS[seed % 3], seed, 64)) for seed in range(100)]
    for number in range(photos):
        # A comment after the end of the picture makes each file's bytes its own.
        (box.inbox / f"{number}.jpg").write_bytes(pictures[number % 100] + str(number).encode())
    names = {"shapes-1", "shapes-2", *(f"swap-{number}" for number in range(swaps))}
    for number in range(swaps):
        _copy_model(models, f"swap-{number}")
    (models / "swap-7" / "model.xml").write_text("broken")
    with box.running() as daemon:
        for number in range(swaps):
            daemon.wait_for("sorted")
            _use(models, f"swap-{number}")
            daemon.process.send_signal(signal.SIGHUP)
            if number == 7:
                daemon.wait_for("model refused", model="swap-7")
            else:
                daemon.wait_for("model changed", model=f"swap-{number}")
        wait_until(lambda: not any(box.inbox.iterdir()), "an empty inbox", timeout=120)
        assert daemon.stop() == 0
    with sqlite3.connect(box.folder / "state" / "ledger.sqlite3") as ledger:
        rows = ledger.execute("SELECT name, model, destination FROM photos WHERE state = 'done'").fetchall()
    assert len(rows) == len({name for name, _, _ in rows}) == photos
    assert {model for _, model, _ in rows} <= names - {"swap-7"}
    assert all(Path(destination.decode()).is_file() for _, _, destination in rows)
    assert len([path for path in box.sorted.rglob("*") if path.is_file()]) == photos


def test_undo_puts_the_last_photos_back_and_leaves_alone_what_a_person_has_moved(box):
    originals = {path.name: path.read_bytes() for path in drawn.write_folder(box.inbox, "circles", 5)}
    box.call("run", "--once", check=True)
    placed = {path.name: path for path in box.sorted.rglob("*.jpg")}
    moved = placed["circles-0000001.jpg"].rename(box.folder / "kept.jpg")
    placed["circles-0000002.jpg"].write_bytes(b"edited by a person")
    undone = box.call("undo", "--last", "4")
    back = {path.name: path.read_bytes() for path in box.inbox.iterdir()}
    rows = {
        row["file"]: row["state"]
        for name in originals
        for row in json.loads(box.call("show", name, "--json").stdout)
    }
    last_four = set(sorted(originals, key=lambda name: _row_id(box, name))[-4:])
    assert set(back) == last_four - {"circles-0000001.jpg", "circles-0000002.jpg"}
    assert all(originals[name] == data for name, data in back.items())
    assert moved.is_file()
    assert placed["circles-0000002.jpg"].read_bytes() == b"edited by a person"
    assert "left alone" in undone.stdout
    assert {rows[name] for name in back} == {"undone"}
    assert {rows[name] for name in set(originals) - set(back)} == {"done"}


def test_undo_takes_back_what_one_model_decided(box):
    drawn.write_folder(box.inbox, "circles", 3)
    box.call("run", "--once", check=True)
    box.call("models", "use", "shapes-2", check=True)
    drawn.write_folder(box.inbox, "squares", 2)
    box.call("run", "--once", check=True)
    box.call("undo", "--model", "shapes-1", check=True)
    assert sorted(path.name for path in box.inbox.iterdir()) == [
        f"circles-{number:07d}.jpg" for number in range(3)
    ]
    box.call("run", "--once", check=True)
    [latest, earlier] = json.loads(box.call("show", "circles-0000000.jpg", "--json").stdout)
    assert (latest["model"], latest["state"]) == ("shapes-2", "done")
    assert (earlier["model"], earlier["state"]) == ("shapes-1", "undone")


def test_undo_of_one_file_never_overwrites_what_lies_in_the_inbox(box):
    photo = drawn.write(box.inbox / "photo.jpg", drawn.draw("circles", 3))
    data = photo.read_bytes()
    box.call("run", "--once", check=True)
    photo.write_bytes(b"another one")
    [filed] = box.sorted.rglob("photo.jpg")
    box.call("undo", str(filed), check=True)
    assert photo.read_bytes() == b"another one"
    assert (box.inbox / "photo-1.jpg").read_bytes() == data


def test_retry_sends_review_and_rejected_through_again_with_the_newest_model(box):
    box.config.write_text(box.config.read_text().replace("threshold: 0.0", "threshold: 1.0"))
    drawn.write(box.inbox / "unsure.jpg", drawn.draw("circles", 4))
    (box.inbox / "text.jpg").write_text("no picture")
    box.call("run", "--once", check=True)
    assert {path.name for path in box.review.iterdir()} == {"unsure.jpg"}
    assert {path.name for path in box.rejected.iterdir()} == {"text.jpg", "text.jpg.reason.txt"}
    box.config.write_text(box.config.read_text().replace("threshold: 1.0", "threshold: 0.0"))
    box.call("models", "use", "shapes-2", check=True)
    box.call("retry", check=True)
    assert {path.name for path in box.inbox.iterdir()} == {"unsure.jpg", "text.jpg"}
    assert list(box.rejected.iterdir()) == []
    box.call("run", "--once", check=True)
    [latest, _] = json.loads(box.call("show", "unsure.jpg", "--json").stdout)
    assert (latest["event"], latest["model"]) == ("sorted", "shapes-2")


def test_confirm_records_labels_by_content(box):
    drawn.write_folder(box.inbox, "circles", 3)
    box.call("run", "--once", check=True)
    assert "3 photos confirmed" in box.call("confirm", check=True).stdout
    with sqlite3.connect(box.folder / "state" / "ledger.sqlite3") as ledger:
        assert ledger.execute("SELECT count(*) FROM confirmations").fetchone() == (3,)
    outside = box.call("confirm", str(box.folder))
    assert outside.returncode == 1
    assert "does not lie in a class folder" in outside.stderr


def _rename(folder: Path, name: str) -> None:
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest["name"] = name
    (folder / "bundle.json").write_text(json.dumps(manifest))


def _copy_model(models: Path, name: str) -> None:
    shutil.copytree(models / "shapes-1", models / name)
    _rename(models / name, name)


def _use(models: Path, name: str) -> None:
    """Replace the link in one step, without the checks of `pawsort models use`."""
    temporary = models / ".current.new"
    temporary.symlink_to(name)
    temporary.replace(models / "current")


def _row_id(box: Sandbox, name: str) -> int:
    return json.loads(box.call("show", name, "--json", check=True).stdout)[0]["id"]
