import json
import os
import subprocess
import sys
import threading
import time

import pytest

from daemon import status
from daemon.status import Lock, Problems, Snapshot, StatusFile
from pawsort import config, errors

SNAPSHOT = Snapshot(
    pid=1,
    started=0.0,
    written=0.0,
    ready=True,
    model="pets-1",
    engine="openvino",
    watch="native",
    in_flight=3,
    waiting={"just changed": 2},
    longest_waiting="a.jpg: just changed",
    recovered_by_rescan=4,
    last_rescan=1.0,
    last_rescan_reason="regular",
    last_photo="a.jpg: cats",
    problems={"filing": "No space left on device"},
)


@pytest.fixture
def settings(place):
    (place.root / "config.yaml").write_text(f"inbox: {place.inbox}\nsorted: {place.folders.sorted}\n")
    return config.load(place.root / "config.yaml")


@pytest.fixture
def state(settings):
    settings.state.mkdir(exist_ok=True)
    return settings.state


def snapshot(**changes):
    return Snapshot(**{**SNAPSHOT.__dict__, "written": time.time(), **changes})


def test_a_snapshot_is_read_back(state):
    StatusFile(state).write(SNAPSHOT)
    assert status.read(state) == SNAPSHOT.__dict__


def test_a_reader_never_sees_half_a_snapshot(state):
    file, stop, broken = StatusFile(state), threading.Event(), []
    file.write(SNAPSHOT)

    def read():
        while not stop.is_set():
            if status.read(state) is None:
                broken.append(True)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(300):
        file.write(snapshot(last_photo="x" * (number * 40)))
    stop.set()
    reader.join()
    assert broken == []


def test_a_name_that_is_not_utf_8_does_not_stop_the_daemon_from_saying_how_it_is(state):
    StatusFile(state).write(snapshot(problems={"inbox": os.fsdecode(b"/caf\xe9: No such file")}))
    assert "No such file" in status.read(state)["problems"]["inbox"]


@pytest.mark.parametrize("text", [None, b"", b"{", b"[]", b"\xff"])
def test_a_snapshot_that_cannot_be_read_is_none(state, text):
    if text is not None:
        (state / status.FILE).write_bytes(text)
    assert status.read(state) is None


# The lock


@pytest.fixture
def other_daemon(state):
    """Another process that holds the lock."""
    script = (
        "import sys; from pathlib import Path; from daemon.status import Lock\n"
        "with Lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, state], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


def test_two_daemons_never_work_on_one_state_folder(state, other_daemon):
    with pytest.raises(errors.MachineError, match=f"process {other_daemon.pid}"), Lock(state):
        pytest.fail("both hold the lock")


def test_the_lock_of_a_killed_daemon_is_free_at_once(state, other_daemon):
    assert status.is_running(state)
    other_daemon.kill()
    other_daemon.wait()
    assert not status.is_running(state)
    with Lock(state):
        assert (state / status.LOCK).read_text() == f"{os.getpid()}\n"


def test_asking_whether_a_daemon_runs_changes_nothing(tmp_path, state):
    assert not status.is_running(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    with Lock(state):
        assert status.is_running(state)
    assert not status.is_running(state)


# The report


def report(settings):
    found = status.report(settings)
    json.dumps(found)
    return found


def test_a_running_daemon_is_reported_in_its_own_words(settings, state, other_daemon):
    StatusFile(state).write(snapshot())
    found = report(settings)
    assert (found["ready"], found["running"], found["pid"]) == (True, True, 1)
    assert found["degraded"] == {"filing": "No space left on device"}
    assert (found["model"], found["engine"], found["in_flight"]) == ("pets-1", "openvino", 3)
    assert found["recovered_by_rescan"] == 4


def test_a_stopped_daemon_is_not_ready_whatever_it_said_last(settings, state):
    StatusFile(state).write(snapshot())
    found = report(settings)
    assert (found["ready"], found["running"], found["pid"], found["degraded"]) == (False, False, None, {})
    assert (found["in_flight"], found["waiting"]) == (0, {})


def test_a_daemon_without_a_sign_of_life_is_stuck_and_not_ready(settings, state, other_daemon):
    StatusFile(state).write(snapshot(written=time.time() - status.STALE_AFTER - 60))
    found = report(settings)
    assert not found["ready"]
    assert "no sign of life for 7" in found["degraded"]["daemon"]


def test_before_the_first_start_there_is_a_report_too(settings):
    found = report(settings)
    assert (found["ready"], found["sorted"], found["backlog"]) == (False, 0, 0)
    assert found["oldest_waiting_s"] is None


def test_photos_are_counted_from_the_ledger(settings, place, arrive):
    place.filing.file(
        [
            arrive("a.jpg"),
            arrive("b.jpg", label="dogs"),
            arrive("c.jpg", event="review"),
            arrive("d.jpg", event="rejected", reason="corrupt"),
        ]
    )
    found = report(settings)
    assert (found["sorted"], found["review"], found["rejected"]) == (2, 1, 1)
    assert found["by_label"] == {"cats": 1, "dogs": 1}


def test_the_backlog_is_what_lies_in_the_inbox_and_may_be_a_photo(settings, place):
    (place.inbox / "deep").mkdir()
    for name in ("a.jpg", "deep/b.jpg", "c.jpg.part", ".hidden"):
        (place.inbox / name).write_bytes(b"photo")
    (place.inbox / "link.jpg").symlink_to("/etc/passwd")
    found = report(settings)
    assert found["backlog"] == 2
    assert 0 <= found["oldest_waiting_s"] < 60


def test_our_own_folders_inside_the_inbox_are_no_backlog(place):
    (place.inbox / "state").mkdir()
    (place.inbox / "state" / "x").write_bytes(b"")
    found = status.backlog(place.inbox, recursive=True, skip=frozenset({place.inbox / "state"}))
    assert found == status.Backlog(files=0, oldest_s=None)


def test_what_was_filed_lately_is_counted_by_minute_hour_and_day(settings, place, arrive, monkeypatch):
    now = time.time()
    for age in (0, 120, 7200, 200_000):
        monkeypatch.setattr(time, "time", lambda age=age: now - age)
        place.filing.file([arrive(f"{age}.jpg")])
        monkeypatch.undo()
    assert report(settings)["filed_last"] == {"minute": 1, "hour": 2, "day": 3}


def test_what_a_person_has_to_look_at_is_what_lies_there_now(settings, place, arrive):
    place.filing.file([arrive("a.jpg", event="review"), arrive("b.jpg", event="rejected", reason="corrupt")])
    found = report(settings)
    assert (found["review_waiting"], found["rejected_waiting"]) == (1, 1)
    (place.folders.review / "a.jpg").unlink()
    found = report(settings)
    assert (found["review"], found["review_waiting"]) == (1, 0)


def test_room_left_is_told_once_a_disk(settings, place):
    (disk,) = report(settings)["disks"]
    assert 0 < disk["free_bytes"] < disk["total_bytes"]


def test_photos_that_nobody_sorts_are_worth_a_hint(settings, place):
    assert report(settings)["hints"] == []
    (place.inbox / "a.jpg").write_bytes(b"photo")
    (hint,) = report(settings)["hints"]
    assert "1 photos wait" in hint


def test_the_age_of_the_model_is_told(settings):
    assert report(settings)["model_age_s"] > 0


# Problems


def test_a_problem_is_logged_when_it_begins_and_when_it_ends_however_long_it_lasts():
    import structlog

    problems = Problems()
    with structlog.testing.capture_logs() as lines:
        for _ in range(100):
            problems.set("filing", "No space left on device")
        assert problems.has("filing")
        assert problems.lasting == {"filing": "No space left on device"}
        for _ in range(100):
            problems.set("filing", None)
    assert [line["event"] for line in lines] == ["degraded", "recovered"]
    assert lines[0]["reason"] == "No space left on device"
    assert not problems.has("filing")
