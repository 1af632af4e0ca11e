"""Faults of the machine, staged for real: a file system of our own, an immutable file. Both need root."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def file_system(folder: Path, options: str = "size=1m") -> Iterator[Path]:
    """A tmpfs of its own mounted on `folder`."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def another_file_system(near: Path) -> Iterator[Path]:
    """A folder on another file system than `near`, in memory: /dev/shm, or where that will not do, one mounted there."""
    memory = Path("/dev/shm")
    if memory.is_dir() and memory.stat().st_dev != near.stat().st_dev and os.access(memory, os.W_OK):
        with tempfile.TemporaryDirectory(prefix="pawsort-test-", dir=memory) as folder:
            yield Path(folder)
    else:
        with file_system(near / "other", "size=64m") as folder:
            yield folder


@contextmanager
def immutable(path: Path) -> Iterator[None]:
    """`path` cannot be changed, renamed or removed, by root either."""
    if os.geteuid() != 0 or not shutil.which("chattr"):
        pytest.skip("making a file immutable needs root and chattr")
    done = subprocess.run(["chattr", "+i", str(path)], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no file can be made immutable here: {done.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", str(path)], check=True)


def fill(folder: Path) -> Path:
    """Take all the room that is left in the file system of `folder`, but no inode more than one. Gives the ballast."""
    ballast = folder / ".ballast"
    with ballast.open("wb", buffering=0) as stream:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while stream.write(bytes(size)) == size:
                    pass
            except OSError:
                continue
    return ballast
