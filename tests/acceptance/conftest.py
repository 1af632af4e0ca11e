"""What acceptance tests ask for."""

from collections.abc import Callable
from pathlib import Path

import pytest

from harness import Sandbox


@pytest.fixture
def sandbox(tmp_path: Path, tiny_model: Path) -> Callable[..., Sandbox]:
    """Makes a sandbox in which the tiny model serves; keyword arguments are settings."""
    return lambda **settings: Sandbox(tmp_path, tiny_model.parent, **settings)
