"""What happens to the inbox itself while the real daemon watches it: noticed within seconds, said, and healed."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

import drawn
import faultstage
from harness import wait_until

pytestmark = pytest.mark.faults

NOTICED = 8.0  # seconds within which a change to the folder is noticed and healed
INOTIFY = Path("/proc/sys/fs/inotify")


@contextlib.contextmanager
def kernel_limit(name: str, value: int):
    """A limit of inotify, for a while."""
    if os.geteuid() != 0:
        pytest.skip("changing a limit of the kernel needs root")
    limit = INOTIFY / name
    before = limit.read_text()
    limit.write_text(f"{value}\n")
    try:
        yield
    finally:
        limit.write_text(before)


def test_a_burst_that_overflows_the_kernels_queue_is_found_by_a_rescan_at_once(sandbox, full):
    burst = 50_000 if full else 300
    # Nothing but the loss itself is to lead to the rescan.
    box = sandbox(threshold=0.0, rescan_s=3600.0, patience_s=0.1)
    small_queue = contextlib.nullcontext() if full else kernel_limit("max_queued_events", 64)
    with small_queue, box.running() as daemon:
        # Once this is filed, the first scan is over: it is not that one which finds the burst.
        (box.inbox / "first.txt").write_text("first")
        daemon.wait_for_photo("first.txt")
        daemon.process.send_signal(signal.SIGSTOP)
        names = {f"burst-{number}.txt" for number in range(burst)}
        for name in names:
            (box.inbox / name).write_text(name)
        daemon.process.send_signal(signal.SIGCONT)
        wait_until(lambda: not any(box.inbox.iterdir()), "all of the burst filed", timeout=60 + burst / 50)
        status = wait_until(
            lambda: (now := box.status())["recovered_by_rescan"] and now, "the rescan counted in the status"
        )
    assert {line["file"] for line in daemon.photos} == {"first.txt", *names}
    assert len(daemon.photos) == burst + 1
    print(f"{burst} files while it was stopped; {status['recovered_by_rescan']} recovered by a rescan")


def gone_and_back_by_removal(inbox: Path):
    inbox.rmdir()
    yield
    inbox.mkdir()


def gone_and_back_by_renaming(inbox: Path):
    aside = inbox.with_name("aside")
    inbox.rename(aside)
    yield
    aside.rename(inbox)


@pytest.mark.parametrize("way", [gone_and_back_by_removal, gone_and_back_by_renaming])
def test_an_inbox_that_goes_away_is_waited_for_without_spinning(way, sandbox):
    box = sandbox(threshold=0.0, rescan_s=3600.0)
    with box.running() as daemon:
        steps = way(box.inbox)
        next(steps)
        began = time.monotonic()
        daemon.wait_for("degraded", problem="inbox")
        assert time.monotonic() - began < NOTICED
        assert "inbox" in wait_until(lambda: box.status()["degraded"], "degraded in status")
        before = processor_seconds(daemon.process.pid)
        wait_until(lambda: time.monotonic() > began + 4, "some seconds without an inbox")
        assert processor_seconds(daemon.process.pid) - before < 1.0
        next(steps, None)
        drawn.write(box.inbox / "after.jpg", drawn.draw("circles", 1))
        daemon.wait_for("recovered", problem="inbox", timeout=NOTICED)
        daemon.wait_for_photo("after.jpg", timeout=NOTICED)
        # Its events come again, too: with no rescan for an hour there is nothing else to find this one.
        drawn.write(box.inbox / "later.jpg", drawn.draw("circles", 2))
        daemon.wait_for_photo("later.jpg", timeout=NOTICED)
    assert [line["event"] for line in daemon.lines].count("degraded") == 1


def test_an_inbox_that_is_replaced_is_watched_anew(sandbox):
    box = sandbox(threshold=0.0, rescan_s=3600.0)
    with box.running() as daemon:
        box.inbox.rename(box.folder / "old")
        box.inbox.mkdir()
        drawn.write(box.inbox / "in-the-new-one.jpg", drawn.draw("circles", 1))
        daemon.wait_for_photo("in-the-new-one.jpg", timeout=NOTICED)


def test_an_inbox_that_is_unmounted_is_missed_and_watched_again_when_it_is_back(sandbox, tmp_path):
    with faultstage.file_system(tmp_path / "disk"):
        box = sandbox(threshold=0.0, rescan_s=3600.0, inbox="disk")
        with box.running() as daemon:
            drawn.write(tmp_path / "disk" / "first.jpg", drawn.draw("circles", 1))
            daemon.wait_for_photo("first.jpg")
            subprocess.run(["umount", tmp_path / "disk"], check=True)
            daemon.wait_for("degraded", problem="mounts", timeout=NOTICED)
            stray = drawn.write(tmp_path / "disk" / "on-the-bare-mount-point.jpg", drawn.draw("circles", 2))
            assert "mounts" in wait_until(lambda: box.status()["degraded"], "degraded in status")
            subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path / "disk"], check=True)
            daemon.wait_for("recovered", problem="mounts", timeout=NOTICED)
            drawn.write(tmp_path / "disk" / "second.jpg", drawn.draw("circles", 3))
            daemon.wait_for_photo("second.jpg", timeout=NOTICED)
            assert not any(line["file"] == stray.name for line in daemon.photos)


@pytest.mark.parametrize("mounted", ["sorted", "sorted/circles"])
def test_where_the_disk_of_the_sorted_photos_is_missing_nothing_is_put_on_its_bare_mount_point(
    mounted, sandbox, tmp_path
):
    box = sandbox(threshold=0.0)
    with faultstage.file_system(tmp_path / mounted):
        with box.running() as daemon:
            drawn.write(box.inbox / "first.jpg", drawn.draw("circles", 1))
            daemon.wait_for_photo("first.jpg")
            wait_until((tmp_path / "state" / "mounts.json").is_file, "the mount remembered")
            subprocess.run(["umount", tmp_path / mounted], check=True)
            drawn.write(box.inbox / "second.jpg", drawn.draw("circles", 2))
            daemon.wait_for("degraded", timeout=NOTICED)
            assert str(tmp_path / mounted) in str(wait_until(lambda: box.status()["degraded"], "degraded"))
        # Neither after a restart.
        start = box.call("run", "--once")
        assert start.returncode == 1
        assert "mount it" in start.stderr
        assert box.call("check").returncode == 2
        assert list((tmp_path / mounted).iterdir()) == []
        assert (box.inbox / "second.jpg").is_file()
        subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path / mounted], check=True)
        assert box.call("run", "--once").returncode == 0
        assert list(box.sorted.rglob("second.jpg"))


def test_where_inotify_is_exhausted_the_daemon_polls_and_says_so(sandbox):
    box = sandbox(threshold=0.0, rescan_s=3600.0)
    with kernel_limit("max_user_instances", 0), box.running() as daemon:
        assert daemon.wait_for("ready")["watch"] == "polling"
        assert "max_user_instances" in wait_until(lambda: box.status()["watch"], "the watch in status")
        drawn.write(box.inbox / "photo.jpg", drawn.draw("circles", 1))
        daemon.wait_for_photo("photo.jpg", timeout=NOTICED)


def test_a_file_whose_writer_never_ends_is_left_alone_and_told(sandbox):
    box = sandbox(threshold=0.0, rescan_s=0.2)
    with box.running() as daemon, (box.inbox / "endless.jpg").open("wb") as writer:
        writer.write(drawn.encode(drawn.draw("circles", 1)))
        writer.flush()
        # A look that falls between opening and writing finds it empty, and says so first.
        told = {"a writer has it open": 1}
        status = wait_until(lambda: (found := box.status())["waiting"] == told and found, "told in status")
        assert "endless.jpg" in status["longest_waiting"]
        drawn.write(box.inbox / "other.jpg", drawn.draw("circles", 2))
        daemon.wait_for_photo("other.jpg")
        assert (box.inbox / "endless.jpg").is_file()


def processor_seconds(process: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
