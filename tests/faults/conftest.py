import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import faultstage
from ground import Sorter
from harness import Sandbox


@pytest.fixture(scope="session")
def full() -> bool:
    """Whether the tests are to be run in full: `make test-faults`."""
    return os.environ.get("PAWSORT_FAULTS") == "full"


@pytest.fixture
def sandbox(tmp_path: Path, tiny_model: Path) -> Callable[..., Sandbox]:
    """Makes a sandbox in which the tiny model serves; keyword arguments are settings."""
    return lambda **settings: Sandbox(tmp_path, tiny_model.parent, **settings)


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system than tmp_path."""
    with faultstage.another_file_system(tmp_path) as folder:
        yield folder


@pytest.fixture(scope="session")
def sorter() -> Iterator[Sorter]:
    """sorter.py at work."""
    sorter = Sorter()
    yield sorter
    sorter.close()


@pytest.fixture(scope="session")
def strace() -> None:
    """Skips where strace is missing or may not trace."""
    if shutil.which("strace") is None:
        pytest.skip("wants strace (on Debian and Ubuntu: apt-get install strace)")
    tried = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"strace may not trace here: {tried.stderr.strip()}")
