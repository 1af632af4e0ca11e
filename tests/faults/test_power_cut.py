"""The power goes: what was not synced is gone, then a restart, then a count.

Staged on real ext4 and XFS in files, with the shutdown ioctl of the kernel's own tests: from then on nothing reaches
the disk, not even what is in the journal's memory. The process is stopped first and killed after, so that it cannot
react, and file systems that it works on are cut at one instant.
"""

import contextlib
import fcntl
import os
import random
import shutil
import signal
import struct
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from ground import Ground
from harness import wait_until

pytestmark = pytest.mark.faults

_SHUTDOWN = 0x8004587D  # FS_IOC_SHUTDOWN, _IOR('X', 125, __u32): linux/fs.h
_NO_LOG_FLUSH = 2  # FS_SHUTDOWN_FLAGS_NOLOGFLUSH
_SIZES = {"ext4": 64 << 20, "xfs": 320 << 20}  # bytes; mkfs.xfs makes nothing below 300 MB
_PHOTOS = 30


class Disk:
    """A file system of its own, in a file, whose power can be cut."""

    def __init__(self, folder: Path, kind: str) -> None:
        self._image = folder.with_suffix(".img")
        self.folder = folder
        self.folder.mkdir()
        with self._image.open("wb") as stream:
            stream.truncate(_SIZES[kind])
        make = {"ext4": ["mkfs.ext4", "-q", "-F"], "xfs": ["mkfs.xfs", "-q", "-f"]}[kind]
        subprocess.run([*make, str(self._image)], check=True, capture_output=True)
        self.mount()

    def mount(self) -> None:
        subprocess.run(
            ["mount", "-o", "loop", str(self._image), str(self.folder)], check=True, capture_output=True
        )

    def unmount(self) -> None:
        subprocess.run(["umount", str(self.folder)], check=True)
        # Where another mount namespace holds it, the next mount would be of the very file system that was shut down.
        wait_until(lambda: not self._loop_devices(), f"{self._image} let go of")

    def _loop_devices(self) -> str:
        return subprocess.run(
            ["losetup", "--associated", str(self._image)], check=True, capture_output=True, text=True
        ).stdout

    def write_back(self) -> None:
        subprocess.run(["sync", "--file-system", str(self.folder)], check=True)

    def cut(self) -> None:
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(descriptor)


@pytest.fixture
def disk(tmp_path):
    """Makes disks: disk(name, kind)."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system and cutting its power needs root")
    disks: list[Disk] = []

    def disk(name: str, kind: str) -> Disk:
        if shutil.which(f"mkfs.{kind}") is None:
            pytest.skip(f"wants mkfs.{kind} (on Debian and Ubuntu: apt-get install e2fsprogs xfsprogs)")
        try:
            disks.append(Disk(tmp_path / name, kind))
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no {kind} can be mounted here: {error.stderr.decode().strip()}")
        return disks[-1]

    yield disk
    for made in disks:
        with contextlib.suppress(subprocess.CalledProcessError):
            made.unmount()


# Which of three disks photos, sorted folders and the ledger lie on.
LAYOUTS = {
    "all on one disk": ("a", "a", "a"),
    "the ledger apart": ("a", "a", "b"),
    "the sorted photos apart": ("a", "b", "a"),
    "the ledger with the sorted photos": ("a", "b", "b"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_power_cut_costs_nothing(kind, layout, disk, sorter, full):
    rounds = 25 if full else 2
    disks, laid_out = make(disk, kind, layout)
    chance = random.Random(f"{kind} {layout}")
    cut_short = 0
    for round_ in range(rounds):
        ground = laid_out(round_)
        cut_short += sort_until_the_power_is_cut(sorter, ground, disks, chance)
        sorter.sort(ground)
        assert ground.wrong() == {}, f"round {round_}"
        ground.clear()
    print(f"{kind}, {layout}: {rounds} power cuts, {cut_short} of them in the middle of the work")
    assert cut_short


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_hurried_filing_is_caught(kind, disk, sorter, full):
    disks, laid_out = make(disk, kind, "the ledger apart")
    caught = Counter()
    chance = random.Random(kind)
    for round_ in range(10 if full else 3):
        ground = laid_out(round_, crowded=False)  # so that what is caught comes of the cut alone
        sort_until_the_power_is_cut(sorter, ground, disks, chance, broken=True)
        sorter.sort(ground, broken=True)
        caught.update(ground.wrong().keys())
        ground.clear()
    print(f"{kind}: {dict(caught)}")
    assert caught


def make(disk, kind, layout):
    disks = {name: disk(name, kind) for name in sorted(set(LAYOUTS[layout]))}
    place, into, state = (disks[name].folder for name in LAYOUTS[layout])

    def laid_out(round_: int, *, crowded: bool = True) -> Ground:
        folders = (place / f"{round_}", into / f"{round_}-sorted", state / f"{round_}-state")
        ground = Ground.lay_out(*folders, _PHOTOS, crowded=crowded)
        os.sync()
        return ground

    return list(disks.values()), laid_out


def sort_until_the_power_is_cut(sorter, ground, disks, chance, *, broken=False) -> bool:
    """Gives whether the power was cut before all was done, and puts the disks back to work."""
    worker = sorter.begin(ground, broken=broken)
    first, last = sorted(chance.sample(range(1, _PHOTOS), 2))
    wait_for_photos(ground, first, worker)
    # The kernel writes back what it likes when it likes: on one disk something is durable that nobody had synced.
    chance.choice(disks).write_back()
    wait_for_photos(ground, last, worker)
    with contextlib.suppress(ProcessLookupError):
        os.kill(worker, signal.SIGSTOP)
    for one in disks:
        one.cut()
    with contextlib.suppress(ProcessLookupError):
        os.kill(worker, signal.SIGKILL)
    code = sorter.end()
    for one in disks:
        one.unmount()
        one.mount()
    return code == -signal.SIGKILL


def wait_for_photos(ground: Ground, number: int, worker: int) -> None:
    """Until so many photos have left the inbox, watched as tightly as can be: within a batch they follow fast."""
    while len(os.listdir(ground.place / "inbox")) > _PHOTOS - number and Path(f"/proc/{worker}").exists():
        pass
