"""Strange things in the inbox of the real daemon, beyond what tests/acceptance has."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

import drawn
import faultstage
import stocktaking
from harness import Running, wait_until

pytestmark = pytest.mark.faults


def test_hard_links_to_filed_photos_are_photos_of_their_own_and_nothing_is_lost(sandbox):
    box = sandbox(threshold=0.0)
    drawn.write(box.inbox / "photo.jpg", drawn.draw("circles", 1))
    box.call("run", "--once", check=True)
    filed = next(box.sorted.rglob("photo.jpg"))
    digest = stocktaking.sha256(filed)
    os.link(filed, box.inbox / "photo.jpg")
    os.link(filed, box.inbox / "another name.jpg")
    box.call("run", "--once", check=True)
    names = {path.name: stocktaking.sha256(path) for path in filed.parent.iterdir()}
    assert names == dict.fromkeys(("photo.jpg", "photo-1.jpg", "another name.jpg"), digest)
    assert list(box.inbox.iterdir()) == []


def test_one_name_again_and_again_overwrites_nothing(sandbox, full):
    count = 1000 if full else 60
    box = sandbox(threshold=0.0)
    there = set()
    for number in range(count):
        folder = box.inbox / f"{number}"
        folder.mkdir()
        there.add(stocktaking.sha256(drawn.write(folder / "IMG_0001.png", numbered_picture(number))))
    box.call("run", "--once", check=True, timeout=300)
    filed = [path for path in box.sorted.rglob("*") if path.is_file()]
    assert len(filed) == count
    assert {stocktaking.sha256(path) for path in filed} == there
    assert "IMG_0001.png" in {path.name for path in filed}


def test_device_nodes_are_never_opened(sandbox):
    if os.geteuid() != 0:
        pytest.skip("making a device node needs root")
    box = sandbox(threshold=0.0)
    os.mknod(box.inbox / "zero.jpg", stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero: it never ends
    os.mknod(box.inbox / "disk.jpg", stat.S_IFBLK | 0o666, os.makedev(7, 200))
    drawn.write(box.inbox / "photo.jpg", drawn.draw("circles", 1))
    assert box.call("run", "--once").returncode == 0
    assert {path.name for path in box.inbox.iterdir()} == {"zero.jpg", "disk.jpg"}


def test_an_immutable_photo_waits_and_holds_no_other_up(sandbox):
    box = sandbox(threshold=0.0)
    stuck = drawn.write(box.inbox / "stuck.jpg", drawn.draw("circles", 1))
    with faultstage.immutable(stuck), box.running() as daemon:
        daemon.wait_for("degraded", problem="files")
        drawn.write(box.inbox / "other.jpg", drawn.draw("circles", 2))
        daemon.wait_for_photo("other.jpg")
        assert "stuck.jpg" in wait_until(lambda: box.status()["degraded"], "degraded in status")["files"]
        subprocess.run(["chattr", "-i", stuck], check=True)
        daemon.wait_for_photo("stuck.jpg")
        daemon.wait_for("recovered", problem="files")
        subprocess.run(["touch", stuck], check=True)  # for the end of `immutable`


def test_what_may_not_be_read_waits_is_told_and_holds_no_other_up(sandbox):
    box = sandbox(threshold=0.0)
    (box.inbox / "closed folder").mkdir()
    for path in (box.inbox / "closed.jpg", box.inbox / "closed folder" / "inside.jpg"):
        drawn.write(path, drawn.draw("circles", 1))
        path.chmod(0)
    command = box.command("run")
    if os.geteuid() == 0:
        # Root may read everything, unless it is told not to.
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    (box.inbox / "closed folder").chmod(0)
    daemon = Running(command, box.folder)
    try:
        daemon.wait_for("ready")
        daemon.wait_for("degraded", problem="files")
        daemon.wait_for("degraded", problem="folders")
        (box.inbox / "open.jpg").write_bytes(drawn.encode(drawn.draw("circles", 2)))
        (box.inbox / "open.jpg").chmod(0o644)
        daemon.wait_for_photo("open.jpg")
        assert (box.inbox / "closed.jpg").is_file()
        (box.inbox / "closed folder").chmod(0o755)
        for path in (box.inbox / "closed.jpg", box.inbox / "closed folder" / "inside.jpg"):
            path.chmod(0o644)
            assert daemon.wait_for_photo(path.name)["event"] == "sorted"
        daemon.wait_for("recovered", problem="files")
        daemon.wait_for("recovered", problem="folders")
    finally:
        (box.inbox / "closed folder").chmod(0o755)
        daemon.end()


def test_memory_stays_flat_however_many_files_there_are(sandbox, full):
    first, more = (10_000, 90_000) if full else (150, 450)
    box = sandbox(threshold=0.0)
    with box.running() as daemon:
        for number in range(first):
            (box.inbox / f"{number}.png").write_bytes(picture_of(number))
        wait_until(lambda: not any(box.inbox.iterdir()), "the first files filed", timeout=60 + first / 50)
        before = resident_megabytes(daemon.process.pid)
        for number in range(first, first + more):
            (box.inbox / f"{number}.png").write_bytes(picture_of(number))
        wait_until(lambda: not any(box.inbox.iterdir()), "all files filed", timeout=60 + more / 50)
        after = resident_megabytes(daemon.process.pid)
        daemon.stop()
    print(f"{before:.0f} MB after {first} files, {after:.0f} MB after {first + more}")
    assert len({line["id"] for line in daemon.photos}) == first + more
    assert after - before < 25


def picture_of(number: int) -> bytes:
    return drawn.encode(numbered_picture(number), ".png")


def numbered_picture(number: int):
    picture = drawn.draw("circles", 1, 16)
    picture[0, 0] = list(number.to_bytes(3, "big"))
    return picture


def resident_megabytes(process: int) -> float:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
