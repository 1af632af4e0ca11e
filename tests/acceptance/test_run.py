"""The main job on the real process: photos arrive in every way there is, and each ends in its place with its line."""

import hashlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

import drawn
from harness import wait_until


def test_photos_that_lay_there_before_the_start_are_sorted(sandbox):
    box = sandbox()
    drawn.write_folder(box.inbox, "circles", 3)
    with box.running() as daemon:
        for number in range(3):
            line = daemon.wait_for_photo(f"circles-{number:07d}.jpg")
            assert line["label"] == "circles"
            assert (box.sorted / "circles" / line["file"]).is_file()
    assert list(box.inbox.iterdir()) == []


def test_each_class_goes_into_its_own_folder(sandbox):
    box = sandbox(threshold=0.0)
    with box.running() as daemon:
        right = 0
        for label in drawn.LABELS:
            for path in drawn.write_folder(box.inbox, label, 5, seed=7):
                line = daemon.wait_for_photo(path.name)
                assert Path(line["destination"]) == box.sorted / line["label"] / path.name
                assert Path(line["destination"]).is_file()
                right += line["label"] == label
    assert right >= 14


def test_a_photo_that_is_copied_in_is_sorted(sandbox, tmp_path):
    box = sandbox()
    photo = drawn.write(tmp_path / "copied.jpg", drawn.draw("squares", 1))
    with box.running() as daemon:
        subprocess.run(["cp", photo, box.inbox], check=True)
        assert daemon.wait_for_photo("copied.jpg")["event"] in {"sorted", "review"}


def test_a_photo_that_is_moved_in_is_sorted(sandbox, tmp_path):
    box = sandbox()
    photo = drawn.write(tmp_path / "moved.jpg", drawn.draw("squares", 2))
    with box.running() as daemon:
        subprocess.run(["mv", photo, box.inbox], check=True)
        assert daemon.wait_for_photo("moved.jpg")["event"] in {"sorted", "review"}


def test_a_photo_that_is_written_slowly_is_sorted_when_its_writer_is_done_and_not_before(sandbox):
    box = sandbox(rescan_s=0.2)
    data = drawn.encode(
        drawn.draw("circles", 3, 400), ".bmp"
    )  # cut off anywhere, a BMP is still a picture to some
    with box.running() as daemon:
        with (box.inbox / "slow.bmp").open("wb") as writer:
            for start in range(0, len(data), len(data) // 8 + 1):
                writer.write(data[start : start + len(data) // 8 + 1])
                writer.flush()
                # Another photo that arrives meanwhile is sorted: the daemon had every chance to take the slow one.
                name = f"meanwhile-{start}.jpg"
                drawn.write(box.inbox / name, drawn.draw("squares", start))
                daemon.wait_for_photo(name)
                assert (box.inbox / "slow.bmp").is_file()
            closed = time.monotonic()
        line = daemon.wait_for_photo("slow.bmp")
        assert time.monotonic() - closed < 5
    assert line["bytes"] == len(data)
    assert Path(line["destination"]).read_bytes() == data


def test_a_temporary_name_is_left_alone_until_it_is_renamed(sandbox):
    box = sandbox(rescan_s=0.2)
    with box.running() as daemon:
        part = box.inbox / "photo.jpg.part"
        part.write_bytes(drawn.encode(drawn.draw("circles", 4)))
        drawn.write(box.inbox / "other.jpg", drawn.draw("circles", 5))
        daemon.wait_for_photo("other.jpg")
        assert part.is_file()
        part.rename(box.inbox / "photo.jpg")
        assert daemon.wait_for_photo("photo.jpg")["label"] == "circles"


def test_the_photos_in_a_folder_that_is_moved_in_are_sorted(sandbox, tmp_path):
    box = sandbox()
    drawn.write_folder(tmp_path / "holiday" / "beach", "triangles", 4)
    with box.running() as daemon:
        (tmp_path / "holiday").rename(box.inbox / "holiday")
        for number in range(4):
            daemon.wait_for_photo(f"triangles-{number:07d}.jpg")


def test_a_photo_put_into_a_folder_that_was_made_a_moment_ago_is_sorted(sandbox):
    box = sandbox()
    with box.running() as daemon:
        for number in range(5):
            folder = box.inbox / f"new-{number}" / "deeper"
            folder.mkdir(parents=True)
            drawn.write(folder / f"in-{number}.jpg", drawn.draw("circles", number))
        for number in range(5):
            daemon.wait_for_photo(f"in-{number}.jpg")


def test_folders_in_the_inbox_are_left_alone_when_it_is_not_recursive(sandbox):
    box = sandbox(recursive=False)
    drawn.write_folder(box.inbox / "album", "circles", 1)
    drawn.write(box.inbox / "single.jpg", drawn.draw("circles", 8))
    with box.running() as daemon:
        daemon.wait_for_photo("single.jpg")
        drawn.write(box.inbox / "album" / "late.jpg", drawn.draw("circles", 9))
        drawn.write(box.inbox / "second.jpg", drawn.draw("circles", 10))
        daemon.wait_for_photo("second.jpg")
    assert len(list((box.inbox / "album").iterdir())) == 2


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tiff", ".gif", ".avif"])
def test_every_format_is_sorted_by_its_content_whatever_its_name(sandbox, suffix):
    box = sandbox(threshold=0.0)
    data = drawn.encode(drawn.draw("circles", 11, 128), suffix)
    (box.inbox / "picture.dat").write_bytes(data)
    run = box.call("run", "--once")
    assert run.returncode == 0, run.stderr
    assert (box.sorted / "circles" / "picture.dat").read_bytes() == data


def test_heic_is_sorted_with_the_extra(sandbox):
    pillow_heif = pytest.importorskip("pillow_heif", reason="wants the extra `heic`")
    box = sandbox(threshold=0.0)
    picture = drawn.draw("circles", 12, 128)
    pillow_heif.encode("RGB", (128, 128), picture.tobytes(), box.inbox / "iphone.heic")
    assert box.call("run", "--once").returncode == 0
    assert (box.sorted / "circles" / "iphone.heic").is_file()


def test_what_the_model_is_unsure_about_goes_to_review(sandbox):
    box = sandbox(threshold=1.0)
    drawn.write(box.inbox / "photo.jpg", drawn.draw("circles", 13))
    run = box.call("run", "--once")
    line = json.loads(run.stderr.splitlines()[1])
    assert (box.review / "photo.jpg").is_file()
    assert line["event"] == "review"
    assert line["label"] is None
    assert "confidence" in line["reason"]


def test_what_is_no_image_goes_to_rejected_with_the_reason_in_ledger_log_and_beside_it(sandbox):
    box = sandbox()
    (box.inbox / "letter.jpg").write_text("Dear reader,\n" * 40)
    run = box.call("run", "--once")
    line = json.loads(run.stderr.splitlines()[1])
    note = (box.rejected / "letter.jpg.reason.txt").read_text()
    [row] = json.loads(box.call("show", "letter.jpg", "--json").stdout)
    assert (box.rejected / "letter.jpg").read_text().startswith("Dear reader")
    assert line["event"] == "rejected"
    assert line["reason"] == row["reason"] == note.strip()
    assert line["reason"].startswith("not_an_image: ")


def test_a_truncated_photo_is_waited_for_while_it_is_young_and_then_rejected(sandbox):
    box = sandbox(patience_s=2.0, rescan_s=0.3)
    data = drawn.encode(drawn.draw("circles", 14, 300))
    with box.running() as daemon:
        (box.inbox / "cut.jpg").write_bytes(data[: len(data) // 2])
        drawn.write(box.inbox / "other.jpg", drawn.draw("circles", 15))
        daemon.wait_for_photo("other.jpg")
        assert (box.inbox / "cut.jpg").is_file()
        line = daemon.wait_for_photo("cut.jpg")
    assert line["event"] == "rejected"
    assert line["reason"].startswith("truncated: ")


def test_a_truncated_photo_that_is_completed_in_time_is_sorted(sandbox):
    box = sandbox(patience_s=60.0)
    data = drawn.encode(drawn.draw("circles", 16, 300))
    with box.running() as daemon:
        (box.inbox / "cut.jpg").write_bytes(data[: len(data) // 2])
        drawn.write(box.inbox / "other.jpg", drawn.draw("circles", 17))
        daemon.wait_for_photo("other.jpg")
        with (box.inbox / "cut.jpg").open("ab") as rest:
            rest.write(data[len(data) // 2 :])
        assert daemon.wait_for_photo("cut.jpg")["event"] != "rejected"
    assert [line["file"] for line in daemon.photos].count("cut.jpg") == 1


def test_a_name_that_is_taken_gets_a_number_and_nothing_is_overwritten(sandbox):
    box = sandbox(threshold=0.0)
    kept = {}
    with box.running() as daemon:
        for number in range(4):
            data = drawn.encode(drawn.draw("circles", 20 + number))
            (box.inbox / "photo.jpg").write_bytes(data)
            line = daemon.wait_for("sorted", sha256=_sha256(data))
            kept[line["destination"]] = data
    assert sorted(Path(path).name for path in kept) == [
        "photo-1.jpg",
        "photo-2.jpg",
        "photo-3.jpg",
        "photo.jpg",
    ]
    assert all(Path(path).read_bytes() == data for path, data in kept.items())


def test_exif_orientation_is_applied_before_the_model_looks(sandbox):
    box = sandbox(threshold=0.0)
    tall = drawn.encode(drawn.draw("triangles", 21, (160, 320)))
    turned = _with_orientation(tall, 6)
    (box.inbox / "turned.jpg").write_bytes(turned)
    line = json.loads(box.call("run", "--once").stderr.splitlines()[1])
    assert (line["width"], line["height"]) in {(320, 160), (160, 320)}
    assert line["event"] == "sorted"
    assert Path(line["destination"]).read_bytes() == turned


def test_each_photo_has_one_line_with_every_promised_field(sandbox):
    box = sandbox(threshold=0.0)
    drawn.write_classes(box.inbox, 2)
    run = box.call("run", "--once")
    lines = [json.loads(line) for line in run.stderr.splitlines()]
    photos = [line for line in lines if line["event"] == "sorted"]
    promised = {
        "event", "id", "file", "destination", "label", "confidence", "probabilities", "model", "sha256", "bytes",
        "width", "height", "decode_ms", "infer_ms", "latency_ms",
    }  # fmt: skip
    assert len(photos) == 6
    assert [line["event"] for line in lines] == ["ready", *["sorted"] * 6, "stopped"]
    for line in photos:
        assert promised <= line.keys()
        assert abs(sum(line["probabilities"].values()) - 1) < 1e-3
        data = Path(line["destination"]).read_bytes()
        assert (line["sha256"], line["bytes"]) == (_sha256(data), len(data))
        assert 0 < line["decode_ms"] < line["latency_ms"]
    assert len({line["id"] for line in photos}) == 6


def test_once_prints_a_summary_and_exits_0(sandbox):
    box = sandbox(threshold=0.0)
    drawn.write_folder(box.inbox, "circles", 3)
    (box.inbox / "empty.jpg").touch()
    os.utime(box.inbox / "empty.jpg", (1, 1))
    run = box.call("run", "--once")
    assert run.returncode == 0
    assert "sorted into circles" in run.stdout
    assert "rejected: empty" in run.stdout


def test_dry_run_moves_nothing_and_says_what_it_would_do(sandbox):
    box = sandbox(threshold=0.0)
    drawn.write_folder(box.inbox, "circles", 3)
    before = box.files()
    run = box.call("run", "--dry-run")
    assert run.returncode == 0
    assert box.files() == before
    for number in range(3):
        name = f"circles-{number:07d}.jpg"
        assert f"{box.inbox / name} -> {box.sorted / 'circles' / name}" in run.stdout
    assert box.status()["sorted"] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_what_is_in_flight_and_exits_0_within_seconds(sandbox, number):
    box = sandbox(threshold=0.0)
    for index in range(300):
        drawn.write(box.inbox / f"{index}.jpg", drawn.draw("circles", index % 20, 200))
    with box.running() as daemon:
        daemon.wait_for("sorted")
        began = time.monotonic()
        assert daemon.stop(number) == 0
        assert time.monotonic() - began < 8
    filed = {line["file"] for line in daemon.photos}
    assert daemon.lines[-1]["event"] == "stopped"
    assert {path.name for path in box.inbox.iterdir()} == {f"{index}.jpg" for index in range(300)} - filed
    with sqlite3.connect(box.folder / "state" / "ledger.sqlite3") as ledger:
        assert ledger.execute("SELECT count(*) FROM photos WHERE state = 'done'").fetchone() == (len(filed),)
        assert ledger.execute("SELECT count(*) FROM photos WHERE state != 'done'").fetchone() == (0,)


def test_two_daemons_never_work_on_the_same_folders(sandbox):
    box = sandbox()
    with box.running():
        second = box.call("run", "--once")
    assert second.returncode == 1
    assert "another pawsort" in second.stderr


def test_a_daemon_that_was_killed_leaves_no_decoder_behind(sandbox):
    box = sandbox()
    with box.running() as daemon:
        children = Path(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/children").read_text().split()
        assert len(children) == 2
        daemon.process.kill()
        daemon.process.wait()
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), "decoders gone")


def test_what_is_no_regular_file_is_never_touched(sandbox, tmp_path):
    box = sandbox(rescan_s=0.2)
    outside = drawn.write(tmp_path / "outside.jpg", drawn.draw("circles", 30))
    with box.running() as daemon:
        os.mkfifo(box.inbox / "pipe.jpg")
        (box.inbox / "link.jpg").symlink_to(outside)
        (box.inbox / "loop.jpg").symlink_to(box.inbox / "loop.jpg")
        (box.inbox / "folder.jpg").mkdir()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(box.inbox / "socket.jpg"))
            drawn.write(box.inbox / "photo.jpg", drawn.draw("circles", 31))
            daemon.wait_for_photo("photo.jpg")
            drawn.write(box.inbox / "later.jpg", drawn.draw("circles", 32))
            daemon.wait_for_photo("later.jpg")
    left = {path.name for path in box.inbox.iterdir()}
    assert left == {"pipe.jpg", "link.jpg", "loop.jpg", "folder.jpg", "socket.jpg"}
    assert outside.is_file()
    assert len(daemon.photos) == 2


def test_odd_names_are_kept_and_cannot_forge_a_log_line(sandbox):
    box = sandbox(threshold=0.0)
    names = [
        b"new\nline.jpg",
        b"\xff\xfe not utf-8.jpg",
        "grüße 🐼.jpg".encode(),
        b"a" * 251 + b".jpg",
        b"\x1b[31mred.jpg",
    ]
    for index, name in enumerate(names):
        (box.inbox / os.fsdecode(name)).write_bytes(drawn.encode(drawn.draw("circles", 40 + index)))
    run = box.call("run", "--once")
    lines = [json.loads(line) for line in run.stderr.splitlines()]
    assert [line["event"] for line in lines] == ["ready", *["sorted"] * 5, "stopped"]
    assert "\x1b" not in run.stderr
    filed = {os.fsencode(path.name) for folder in box.sorted.iterdir() for path in folder.iterdir()}
    assert filed == set(names)


def test_show_finds_a_photo_by_path_by_name_and_by_hash_also_after_a_person_moved_it(sandbox):
    box = sandbox(threshold=0.0)
    data = drawn.encode(drawn.draw("squares", 50))
    (box.inbox / "mine.jpg").write_bytes(data)
    box.call("run", "--once", check=True)
    destination = next(box.sorted.glob("*/mine.jpg"))
    moved = box.folder / "renamed.jpg"
    shutil.move(destination, moved)
    for what in ("mine.jpg", str(moved), _sha256(data), _sha256(data)[:8], str(destination)):
        [row] = json.loads(box.call("show", what, "--json", check=True).stdout)
        assert row["sha256"] == _sha256(data)
    assert "mine.jpg" in box.call("show", "mine.jpg").stdout
    assert box.call("show", "never-seen.jpg").returncode == 1


def test_status_tells_the_truth_while_running_and_when_stopped(sandbox):
    box = sandbox(threshold=0.0)
    drawn.write_folder(box.inbox, "circles", 4)
    (box.inbox / "text.jpg").write_text("no image at all")
    promised = {
        "ready", "backlog", "oldest_waiting_s", "sorted", "review", "rejected", "recovered_by_rescan", "model", "engine",
    }  # fmt: skip
    before = box.status()
    assert promised <= before.keys()
    assert (before["ready"], before["backlog"]) == (False, 5)
    assert before["oldest_waiting_s"] >= 0
    with box.running() as daemon:
        daemon.wait_for("rejected")
        for number in range(4):
            daemon.wait_for_photo(f"circles-{number:07d}.jpg")
        during = box.status()
    after = box.status()
    assert (during["ready"], during["backlog"], during["sorted"], during["rejected"]) == (True, 0, 4, 1)
    assert during["degraded"] == {}
    assert (after["ready"], after["running"], after["sorted"]) == (False, False, 4)
    assert "stopped" in box.call("status").stdout


def test_check_prints_settings_folders_model_and_engine(sandbox):
    box = sandbox()
    fine = box.call("check")
    assert fine.returncode == 0
    for word in ("inbox", "sorted", "limits.pixels", "openvino", *drawn.LABELS):
        assert word in fine.stdout


def test_check_exits_2_with_the_reasons_when_it_cannot_run(sandbox, tmp_path):
    box = sandbox()
    (tmp_path / "review").write_text("a file where a folder should be")
    bad = box.call("check", "--json")
    assert bad.returncode == 2
    document = json.loads(bad.stdout)
    assert document["usable"] is False
    assert [finding["what"] for finding in document["findings"] if not finding["usable"]] == ["review"]


def test_a_config_that_is_wrong_stops_it_at_once_with_every_reason(sandbox):
    box = sandbox(inboks="x", threshold=7, batch_size="many")
    run = box.call("run", "--once")
    assert run.returncode == 2
    for key in ("inboks", "threshold", "batch_size"):
        assert key in run.stderr


def test_a_file_replaced_while_it_is_on_its_way_is_looked_at_anew(sandbox):
    box = sandbox(threshold=0.0, batch_size=1)
    first, second = (drawn.encode(drawn.draw("circles", 60 + number, 700), ".png") for number in range(2))
    with box.running() as daemon:
        for turn in range(10):
            (box.inbox / "same.png").write_bytes(first)
            replacement = box.folder / "replacement.png"
            replacement.write_bytes(second)
            replacement.replace(box.inbox / "same.png")
            _next_line_about(daemon, _sha256(second))
            assert not (box.inbox / "same.png").exists(), turn
    for line in daemon.photos:
        assert _sha256(Path(line["destination"]).read_bytes()) == line["sha256"]


def test_duplicates_are_kept_by_default(sandbox):
    box = sandbox(threshold=0.0)
    for name in ("one.jpg", "two.jpg"):
        drawn.write(box.inbox / name, drawn.draw("circles", 70))
    box.call("run", "--once", check=True)
    assert sorted(path.name for path in box.sorted.glob("*/*")) == ["one.jpg", "two.jpg"]


def test_duplicates_are_left_in_the_inbox_when_told_to_skip_them(sandbox):
    box = sandbox(threshold=0.0, duplicates="skip", rescan_s=0.2)
    with box.running() as daemon:
        drawn.write(box.inbox / "one.jpg", drawn.draw("circles", 71))
        daemon.wait_for_photo("one.jpg")
        drawn.write(box.inbox / "two.jpg", drawn.draw("circles", 71))
        assert daemon.wait_for("skipped", file="two.jpg")["duplicate_of"].endswith("one.jpg")
        drawn.write(box.inbox / "three.jpg", drawn.draw("circles", 72))
        daemon.wait_for_photo("three.jpg")
        (box.inbox / "two.jpg").write_bytes(drawn.encode(drawn.draw("circles", 73)))
        daemon.wait_for_photo("two.jpg")
    assert [line["event"] for line in daemon.lines].count("skipped") == 1


def test_duplicates_go_into_their_own_folder_when_told_so(sandbox):
    box = sandbox(threshold=0.0, duplicates="folder")
    for name in ("one.jpg", "two.jpg"):
        drawn.write(box.inbox / name, drawn.draw("circles", 74))
    box.call("run", "--once", check=True)
    assert len(list(box.sorted.glob("*/*.jpg"))) == 1
    assert len(list((box.review / "duplicates").iterdir())) == 1


def test_a_machine_without_room_keeps_the_photo_and_goes_on_when_there_is_room_again(sandbox, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("wants to mount a small file system, which only root may")
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", small], check=True)
    try:
        box = sandbox(sorted=str(small / "sorted"), threshold=0.0)
        ballast = small / "ballast"
        ballast.write_bytes(b"x" * 230_000)
        with box.running() as daemon:
            photo = drawn.write(box.inbox / "photo.png", drawn.draw("circles", 80, 200))
            daemon.wait_for("degraded", problem="filing")
            assert photo.is_file()
            assert "filing" in wait_until(lambda: box.status()["degraded"], "degraded in status")
            ballast.unlink()
            daemon.wait_for_photo("photo.png")
            daemon.wait_for("recovered", problem="filing")
        assert [line["event"] for line in daemon.lines].count("degraded") == 1
    finally:
        subprocess.run(["umount", "-l", small], check=True)


@pytest.mark.real
def test_hostile_files_harm_nothing_and_each_ends_in_one_place_unchanged(sandbox, shared):
    box = sandbox(patience_s=0.5, threshold=0.0)
    there = {}
    for path in (shared / "data" / "hostile").iterdir():
        shutil.copy(path, box.inbox)
        there[path.name] = _sha256(path.read_bytes())
    with box.running() as daemon:
        for name in there:
            daemon.wait_for_photo(name, timeout=90)
        assert daemon.process.poll() is None
    found = box.files()
    assert sorted(Path(path).name for path in found) == sorted(there)
    assert all(_sha256(data) == there[Path(path).name] for path, data in found.items())
    died = [line for line in daemon.photos if line.get("reason", "").startswith("decoder_died")]
    print(f"{len(died)} of {len(there)} killed their decoder, and were rejected")


def test_python_dash_m_and_the_console_script_are_the_same_program():
    script = Path(sys.executable).with_name("pawsort")
    versions = [
        subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout
        for command in ([sys.executable, "-m", "daemon"], [str(script)])
    ]
    assert versions[0] == versions[1]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _next_line_about(daemon, sha256: str) -> None:
    while daemon.next_line().get("sha256") != sha256:
        pass


def _with_orientation(jpeg: bytes, orientation: int) -> bytes:
    """The JPEG with an EXIF block that holds an orientation and nothing else (EXIF 2.32, 4.6.4)."""
    entry = b"\x01\x12\x00\x03\x00\x00\x00\x01" + bytes([0, orientation, 0, 0])
    tiff = b"MM\x00\x2a\x00\x00\x00\x08\x00\x01" + entry + b"\x00\x00\x00\x00"
    body = b"Exif\x00\x00" + tiff
    return jpeg[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + jpeg[2:]
