"""Faults of the machine, on the real process: the photo stays where it is, untouched; status says what is wrong; one
log line when it begins and one when it is over; work goes on by itself after the cure, and nothing is rejected.
"""

import contextlib
import os
import resource
import subprocess
import threading
import time
from pathlib import Path

import pytest

import drawn
import faultstage
import stocktaking
from daemon import status
from ground import Ground
from harness import wait_until

pytestmark = pytest.mark.faults

MOST_PHOTOS = 2000  # after which a full disk ought to have been noticed
SECONDS = 6.0  # after the cure, within which work has gone on


class Fault:
    """A fault of the machine that lasts inside the with statement of `staged`."""

    @staticmethod
    @contextlib.contextmanager
    def no_room(folder: Path):
        ballast = faultstage.fill(folder)
        yield
        ballast.unlink()

    @staticmethod
    @contextlib.contextmanager
    def no_inodes(folder: Path):
        ballast = []
        with contextlib.suppress(OSError):
            for number in range(10_000):
                path = folder / f".ballast-{number}"
                path.touch()
                ballast.append(path)
        yield
        for path in ballast:
            path.unlink()

    @staticmethod
    @contextlib.contextmanager
    def read_only(folder: Path):
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        yield
        subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)

    @staticmethod
    @contextlib.contextmanager
    def not_permitted(folder: Path):
        with faultstage.immutable(folder / "sorted" / "circles"):
            yield


@pytest.mark.parametrize("fault", ["no_room", "no_inodes", "read_only", "not_permitted"])
def test_a_fault_at_the_destination_keeps_the_photos_where_they_are(fault, sandbox, tmp_path):
    if fault == "not_permitted":
        disk = tmp_path / "disk"
        disk.mkdir()
        with contextlib.ExitStack() as stack:
            fault_at_the_destination(fault, sandbox, disk, stack)
    else:
        with (
            faultstage.file_system(tmp_path / "disk", "size=2m,nr_inodes=60") as disk,
            contextlib.ExitStack() as stack,
        ):
            fault_at_the_destination(fault, sandbox, disk, stack)


def fault_at_the_destination(fault, sandbox, disk, stack):
    box = sandbox(threshold=0.0, sorted=str(disk / "sorted"))
    (disk / "sorted" / "circles").mkdir(parents=True)
    photos = {}
    with box.running() as daemon:
        with getattr(Fault, fault)(disk):
            for number in range(3):
                path = drawn.write(box.inbox / f"{number}.jpg", drawn.draw("circles", number))
                photos[path.name] = stocktaking.sha256(path)
            daemon.wait_for("degraded", problem="filing")
            assert "filing" in wait_until(lambda: box.status()["degraded"], "degraded in status")
            began = time.monotonic()
            # More arrive while it lasts, and some tries to file pass.
            late = drawn.write(box.inbox / "late.jpg", drawn.draw("circles", 9))
            photos[late.name] = stocktaking.sha256(late)
            wait_until(lambda: time.monotonic() > began + 2.5, "tries that fail")
            assert {path.name: stocktaking.sha256(path) for path in box.inbox.iterdir()} == photos
        cured = time.monotonic()
        for name in photos:
            daemon.wait_for_photo(name, timeout=SECONDS)
        daemon.wait_for("recovered", problem="filing")
        print(f"{fault}: went on {time.monotonic() - cured:.1f} s after the cure")
        wait_until(lambda: box.status()["degraded"] == {}, "status without a fault")
    events = [line["event"] for line in daemon.lines]
    assert (events.count("degraded"), events.count("recovered"), events.count("rejected")) == (1, 1, 0)
    filed = {path.name: stocktaking.sha256(path) for path in (disk / "sorted").rglob("*") if path.is_file()}
    assert filed == photos


def test_a_full_disk_under_the_ledger_keeps_the_photos_where_they_are(sandbox, tmp_path):
    # No test without inodes: a ledger that is open needs no more of them.
    with faultstage.file_system(tmp_path / "disk", "size=4m") as disk:
        box = sandbox(threshold=0.0, state=str(disk / "state"))
        with box.running() as daemon:
            drawn.write(box.inbox / "first.jpg", drawn.draw("circles", 0))
            daemon.wait_for_photo("first.jpg")
            with Fault.no_room(disk):
                number = 0
                # The write-ahead log has room of its own left for some photos.
                while not (problems := snapshot(disk / "state")["problems"]) and number < MOST_PHOTOS:
                    number += 1
                    drawn.write(box.inbox / f"{number}.jpg", drawn.draw("circles", number))
                    threading.Event().wait(0.02)
                assert "filing" in problems
                assert "filing" in box.status()["degraded"]
                waiting = {path.name for path in box.inbox.iterdir()}
            assert waiting
            for name in waiting:
                daemon.wait_for_photo(name, timeout=SECONDS)
        assert not [line for line in daemon.lines if line["event"] == "rejected"]
        assert len(list(box.sorted.rglob("*.jpg"))) == number + 1


def test_status_says_so_while_the_state_folder_is_read_only(sandbox, tmp_path):
    box = sandbox(threshold=0.0)
    with box.running() as daemon:
        state = str(tmp_path / "state")
        if os.geteuid() != 0:
            pytest.skip("mounting needs root")
        subprocess.run(["mount", "--bind", state, state], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,bind,ro", state], check=True)
            daemon.wait_for("degraded", problem="status")
            assert "read-only" in box.status()["degraded"]["state"]
        finally:
            subprocess.run(["umount", state], check=True)
        daemon.wait_for("recovered", problem="status")
        wait_until(lambda: box.status()["degraded"] == {}, "status without a fault")


@pytest.mark.usefixtures("strace")
def test_an_io_error_on_the_move_is_tried_again_and_costs_nothing(sandbox):
    box = sandbox(threshold=0.0)
    with box.running() as daemon:
        with strace_on(daemon.process.pid, "renameat2:error=EIO"):
            photo = drawn.write(box.inbox / "photo.jpg", drawn.draw("circles", 2))
            daemon.wait_for("degraded", problem="filing")
            assert photo.is_file()
            assert "Input/output error" in wait_until(lambda: box.status()["degraded"], "degraded")["filing"]
        assert daemon.wait_for_photo("photo.jpg", timeout=SECONDS)["event"] == "sorted"


@pytest.mark.usefixtures("strace")
def test_a_sync_that_fails_stops_the_daemon_and_the_next_start_recovers(sandbox, tmp_path):
    box = sandbox(threshold=0.0)
    with box.running() as daemon:
        with strace_on(daemon.process.pid, "fsync:error=EIO"):
            drawn.write(box.inbox / "photo.jpg", drawn.draw("circles", 1))
            assert daemon.process.wait(30) == 1
        daemon.drain()
    assert "cannot be synced" in str(daemon.lines[-1])
    again = box.call("run", "--once")
    assert again.returncode == 0, again.stderr
    assert len(list(box.sorted.rglob("photo.jpg"))) == 1
    assert list(box.inbox.iterdir()) == []
    assert box.status()["sorted"] == 1


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("call", ["fdatasync", "pwrite64", "renameat2", "fsync"])
def test_one_io_error_anywhere_in_the_filing_costs_nothing(call, sorter, tmp_path):
    for number in range(1, 6):
        ground = Ground.lay_out(
            tmp_path / "ground", tmp_path / "ground" / "sorted", tmp_path / "ground" / "state"
        )
        sorter.sort_traced(ground, "-e", f"inject={call}:error=EIO:when={number}")
        sorter.sort(ground)
        assert ground.wrong() == {}, f"{call} {number}"
        ground.clear()


def test_too_many_open_files_hold_the_photos_up_and_no_more(sandbox):
    box = sandbox(threshold=0.0)
    with box.running() as daemon:
        process = daemon.process.pid
        soft, hard = resource.prlimit(process, resource.RLIMIT_NOFILE)
        open_now = len(os.listdir(f"/proc/{process}/fd"))
        resource.prlimit(process, resource.RLIMIT_NOFILE, (open_now, hard))
        photo = drawn.write(box.inbox / "photo.jpg", drawn.draw("circles", 1))
        daemon.wait_for("degraded")
        assert photo.is_file()
        assert wait_until(lambda: box.status()["degraded"], "degraded in status")
        resource.prlimit(process, resource.RLIMIT_NOFILE, (soft, hard))
        assert daemon.wait_for_photo("photo.jpg", timeout=SECONDS + 4)["event"] == "sorted"
        wait_until(lambda: box.status()["degraded"] == {}, "status without a fault")
        assert daemon.process.poll() is None
    problems = [line["problem"] for line in daemon.lines if line["event"] == "degraded"]
    assert len(problems) == len(set(problems))


def snapshot(state: Path) -> dict:
    """What the daemon says of itself; read in place, because a command takes longer than the daemon needs to work."""
    found = status.read(state)
    assert found is not None
    return dict(found)


@contextlib.contextmanager
def strace_on(process: int, injection: str):
    """strace on the main thread of a running process, which files."""
    strace = subprocess.Popen(
        ["strace", "-o", "/dev/null", "-e", f"inject={injection}", "-p", str(process)],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert strace.stderr is not None
    assert "attached" in strace.stderr.readline()
    try:
        yield
    finally:
        strace.terminate()
        strace.wait()
        strace.stderr.close()
