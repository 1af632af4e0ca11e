"""What any test may ask for. Drawn pictures: drawn.py."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The shared photos and weights, beside the repository: read only. Mark its tests `real`."""
    if not (SHARED / "data").is_dir():
        pytest.skip(_ABSENT)
    return SHARED


_ABSENT = f"needs the shared photos and weights, and there is no {os.path.relpath(SHARED / 'data', ROOT)}"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked `real` where the real things are not."""
    if item.get_closest_marker("real") and not (SHARED / "data").is_dir():
        pytest.skip(_ABSENT)
