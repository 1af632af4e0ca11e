"""Fixtures of the trainer's tests: drawn photos, weights to start from, and one small model, made once."""

from pathlib import Path

import pytest
import torch

import drawn
from pawsort import network
from trainer import fit, production
from trainer.augment import Augmentation
from trainer.listener import Silent

SIZE = 64
RECIPE = fit.Recipe(
    epochs=6,
    least_steps=0,
    batch=16,
    first_size=48,
    last_size=64,
    rate=0.02,
    head_factor=2.0,
    depth_factor=1.0,
    averaging=0.8,
    augmentation=Augmentation(style=0.0, grey=0.0, blur=0.0, small=0.0, colour=0.2),
)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Networks this small gain nothing from more, and on a busy machine they lose a lot."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """Random weights to start from: nothing is downloaded."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "random.safetensors"
    network.save(network.build(10), file)
    return file


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """48 drawn photos of each of three classes."""
    return drawn.write_classes(tmp_path_factory.mktemp("shapes"), 48, size=80)


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """A folder for decoded photos."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def order(shapes, weights, cache, tmp_path_factory):
    """Makes an order for a small model of the drawn photos; any field may be given."""

    def make(**fields) -> production.Order:
        given = {
            "data": (shapes,),
            "init": str(weights),
            "models": tmp_path_factory.mktemp("models"),
            "name": "shapes-1",
            "recipe": RECIPE,
            "size": SIZE,
            "device": "cpu",
            "cache": cache,
            "workers": 1,
            "threads": 1,
        }
        return production.Order(**(given | fields))

    return make


@pytest.fixture(scope="session")
def made(order, strangers) -> production.Made:
    """The small model."""
    return production.make(order(other=strangers), Silent())


@pytest.fixture(scope="session")
def strangers(tmp_path_factory) -> Path:
    """Photos of no class."""
    folder = tmp_path_factory.mktemp("strangers")
    drawn.write_folder(folder, "stars", 20, size=80)
    return folder
