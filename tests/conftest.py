"""What any test may ask for. Drawn pictures: drawn.py."""

import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Where several tests run at a time, PyTorch's threads would spin waiting for cores that others have: seven times slower.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

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


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a model that tells drawn circles, squares and triangles apart, made by the trainer's own fit.

    Its parent is a models folder in which it is current. Shared by all tests: copy it to change it.
    """
    # Not at the top: most tests need no PyTorch.
    import torch

    import drawn
    from pawsort import network
    from trainer import fit, production

    home = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    network.save(network.build(len(drawn.LABELS)), home / "untrained.safetensors")
    # From random weights, so every layer learns at the same, high rate.
    recipe = fit.Recipe(
        epochs=7,
        least_steps=0,
        batch=24,
        first_size=64,
        last_size=64,
        rate=0.03,
        head_factor=1.0,
        depth_factor=1.0,
        averaging=0.9,
    )
    order = production.Order(
        data=(drawn.write_classes(home / "data", 60),),
        init=str(home / "untrained.safetensors"),
        models=home / "models",
        name="shapes-1",
        recipe=recipe,
        size=64,
        cache=home / "cache",
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(
        1
    )  # with work this small, threads that wait for each other cost more than they bring
    try:
        return production.make(order, _Silent()).bundle.path
    finally:
        torch.set_num_threads(threads)


class _Silent:
    """A trainer.listener.Listener that tells nobody."""

    def stage(self, title: str) -> None: ...

    def counted(self, done: int, total: int) -> None: ...

    def trained(self, progress: object) -> None: ...

    def note(self, text: str) -> None: ...


_ABSENT = f"needs the shared photos and weights, and there is no {os.path.relpath(SHARED / 'data', ROOT)}"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked `real` where the real things are not."""
    if item.get_closest_marker("real") and not (SHARED / "data").is_dir():
        pytest.skip(_ABSENT)
