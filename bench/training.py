"""`fit`'s training loop against the loop of the tutorials, on the same photos for the same epochs.

The tutorial: torchvision's transforms, ImageFolder, DataLoader with two workers, eager float32, 224 pixels, which is
what torchvision's own fine-tuning tutorial does. Ours: `trainer.fit.train` with its default recipe, decoding included.

    python bench/training.py --data ../shared/data/animals --init ../shared/weights/resnet18-backbone.pth
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pawsort import image, network
from trainer import dataset, fit
from trainer.cache import PhotoCache
from trainer.serving import CachedPhotos

CACHE_SHORT_SIDE = 256


@dataclasses.dataclass
class Timing:
    """Wall time of a stretch of work, and how busy it kept the cores."""

    seconds: float = 0.0
    busy: float = 0.0  # share of all cores' time that this process and its children used


@contextlib.contextmanager
def timed() -> Iterator[Timing]:
    """Measure the body."""
    timing = Timing()
    cpu, wall = _cpu(), time.monotonic()
    yield timing
    timing.seconds = time.monotonic() - wall
    timing.busy = (_cpu() - cpu) / (timing.seconds * (os.cpu_count() or 1))


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def sample(data: Path, folder: Path, per_class: int) -> None:
    """A folder of links to `per_class` photos of each class, as ImageFolder wants it."""
    chooser = random.Random(0)
    for class_folder in sorted(entry for entry in data.iterdir() if entry.is_dir()):
        (folder / class_folder.name).mkdir(parents=True)
        files = sorted(class_folder.iterdir())
        for file in chooser.sample(files, min(per_class, len(files))):
            (folder / class_folder.name / file.name).symlink_to(file.resolve())


def tutorial(folder: Path, weights: network.Weights, epochs: int) -> Timing:
    """The loop of the tutorials."""
    from torchvision import datasets, transforms

    changes = transforms.Compose(
        [
            transforms.RandomResizedCrop(224),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(network.MEAN, network.STD),
        ]
    )
    photos = datasets.ImageFolder(str(folder), changes)
    loader = torch.utils.data.DataLoader(photos, batch_size=32, shuffle=True, num_workers=2)
    model = network.build(len(photos.classes), weights).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    with timed() as timing:
        for _ in range(epochs):
            for pictures, targets in loader:
                loss = nn.functional.cross_entropy(model(pictures), targets)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return timing


def ours(folder: Path, weights: network.Weights, epochs: int, scratch: Path) -> Timing:
    """`fit`'s own: decoding, and the default recipe."""
    recipe = dataclasses.replace(fit.Recipe(), epochs=epochs, least_steps=0)
    with timed() as timing:
        found = dataset.find([folder])
        with PhotoCache(scratch / "cache", short_side=CACHE_SHORT_SIDE) as cache:
            filled = cache.fill(
                [photo.path for photo in found], limits=image.Limits(), workers=os.cpu_count() or 1
            )
            examples = dataset.assemble(found, filled.sha256, cache)
            # All of them, because ImageFolder takes all of them too.
            photos = CachedPhotos(examples.examples, examples.labels, cache)
            fit.train(
                network.build(len(examples.labels), weights),
                photos,
                recipe,
                seed=0,
                device=torch.device("cpu"),
                checkpoint=scratch / "checkpoint.pt",
                identity={},
                validate=lambda _model: float(np.nan),
            )
    return timing


def main() -> None:
    """Run both, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/animals"))
    parser.add_argument("--init", type=Path, default=Path("../shared/weights/resnet18-backbone.pth"))
    parser.add_argument("--photos", type=int, default=160, help="photos a class")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    weights = network.read_weights(arguments.init)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "photos")
        sample(arguments.data, folder, arguments.photos)
        photos = sum(1 for file in folder.rglob("*") if file.is_file())
        mine = ours(folder, weights, arguments.epochs, Path(scratch))
        theirs = tutorial(folder, weights, arguments.epochs)
    ratio = theirs.seconds / mine.seconds
    if arguments.json:
        figures = {"photos": photos, "epochs": arguments.epochs, "ratio": ratio}
        print(
            json.dumps(figures | {"ours": dataclasses.asdict(mine), "tutorial": dataclasses.asdict(theirs)})
        )
        return
    print(f"{photos} photos, {arguments.epochs} epochs, {os.cpu_count()} cores")
    print(f"{'':34}{'seconds':>9}{'photos/s':>10}{'cores busy':>12}")
    for name, timing in (
        ("tutorial loop, eager float32", theirs),
        ("pawsort-train fit, decoding included", mine),
    ):
        speed = photos * arguments.epochs / timing.seconds
        print(f"{name:36}{timing.seconds:7.1f}{speed:10.1f}{timing.busy:11.0%}")
    print(f"ratio {ratio:.1f}")


if __name__ == "__main__":
    main()
