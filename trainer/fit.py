"""The training loop: a network and decoded photos go in, a better network comes out.

Fine-tunes every layer of an ImageNet ResNet-18. What makes it quick on a CPU: photos are decoded once, pictures start
small and grow (Howard 2018, "progressive resizing"), arithmetic is bfloat16 where the CPU is fast at it, memory lies
channels-last, and one thread makes the next pictures while the network learns from the last ones. What makes it good
is in `Recipe`; docs/training.md has the figures for each part.

Every random choice depends on the seed and a step's number alone. So a run that was interrupted and resumed ends
where it would have ended, and two runs with one seed are the same run.
"""

from __future__ import annotations

import copy
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pawsort import errors, network
from trainer import augment, checkpoints
from trainer.listener import ignored

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every setting of a run, but the seed. Figures for the choices: docs/training.md."""

    epochs: int = 16  # at least,
    least_steps: int = 200  # and as many more as it takes, where photos are few, to come to so many steps
    batch: int = 32  # photos a step
    first_size: int = 128  # side of the training pictures at the start, pixels
    last_size: int = 176  # and from four fifths of the run on
    rate: float = 0.004  # peak learning rate of layer4
    head_factor: float = 5.0  # the new head learns this much faster,
    depth_factor: float = 0.5  # and each earlier stage this much slower than the one after it
    warm_up: float = 0.15  # share of the run in which the rate rises
    momentum: float = 0.9
    weight_decay: float = 5e-4  # of convolutions and the head; not of biases and batch norm
    smoothing: float = 0.1  # of labels
    averaging: float = 0.99  # decay, a step, of the running average of weights that is kept in the end
    old_share: float = 0.0  # of the weights that the run began with, in those that it ends with
    balance: float = 0.5  # 0: classes are seen as often as they are; 1: all equally often
    kept: tuple[str, ...] = ()  # layers whose weights stay as they are
    augmentation: augment.Augmentation = field(default_factory=augment.Augmentation)


QUICK = Recipe(epochs=6, first_size=96, last_size=144, kept=("conv1", "bn1", "layer1"))
"""For a first look at new data: a few minutes instead of a quarter of an hour."""


class Photos(Protocol):
    """What is learned from: n decoded photos with their class numbers."""

    targets: NDArray[np.int64]  # (n,) class numbers
    weights: NDArray[np.float64]  # (n,) how much each label is to be trusted, above 0

    def pixels(self, index: int) -> Pixels:
        """Photo number `index`: (h, w, 3) uint8 RGB."""
        ...


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is; told after every step."""

    epoch: int  # from 1
    epochs: int
    step: int  # of the whole run, from 1
    steps: int
    loss: float  # mean of this epoch so far
    accuracy: float  # share right among the changed pictures of this epoch so far
    validation: float | None  # accuracy after the last epoch
    photos_per_second: float
    seconds_left: float


@dataclass
class History:
    """One entry an epoch; the report's learning curves."""

    loss: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


class InterruptedFit(errors.PawsortError):
    """The run was asked to stop; its checkpoint is written."""


def train(
    model: network.Network,
    photos: Photos,
    recipe: Recipe,
    *,
    seed: int,
    device: torch.device,
    checkpoint: Path,
    identity: dict[str, Any],
    validate: Callable[[network.Network], float],
    progress: Callable[[Progress], None] = ignored,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[network.Network, History]:
    """Train `model` and return the average of its weights over the last steps, and what happened.

    With `recipe.old_share`, that average is mixed with the weights that `model` came with, which keeps what it knew and
    most of what it learns (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models").

    A checkpoint is written after each epoch and when `stop` says so (then InterruptedFit is raised); when
    `checkpoint` is there already, the run goes on from it. `identity` is what a checkpoint must agree with.
    `validate` gives the accuracy of a network on photos that are not learned from.
    """
    model = model.to(device=device, memory_format=torch.channels_last).train()
    for name, weights in model.named_parameters():
        weights.requires_grad_(not name.startswith(tuple(recipe.kept)))
    averaged, old = copy.deepcopy(model).eval(), copy.deepcopy(model)
    optimizer = torch.optim.SGD(
        _parameter_groups(model, recipe), lr=0.0, momentum=recipe.momentum, nesterov=True
    )
    history, tally = History(), Tally()
    changing = {"model": model, "averaged": averaged, "optimizer": optimizer}
    batch = min(recipe.batch, len(photos.targets))
    steps_per_epoch = max(len(photos.targets) // batch, 1)
    recipe = replace(recipe, epochs=max(recipe.epochs, math.ceil(recipe.least_steps / steps_per_epoch)))
    steps = steps_per_epoch * recipe.epochs
    done = 0

    # ---- An interrupted run goes on where it stopped ----
    if checkpoint.exists():
        done = checkpoints.restore(checkpoint, identity, changing, {"history": history, "tally": tally})

    # ---- The loop ----
    autocast = device.type == "cuda" or (device.type == "cpu" and network.bfloat16_is_fast())
    mean = torch.tensor(network.MEAN, device=device).view(1, 3, 1, 1) * 255
    scale = 1 / (torch.tensor(network.STD, device=device).view(1, 3, 1, 1) * 255)
    clock = time.monotonic()
    for step, pictures, targets in _pictures(
        photos, recipe, seed, batch, steps_per_epoch, range(done, steps)
    ):
        for group in optimizer.param_groups:
            group["lr"] = group["factor"] * _rate(step / steps, recipe)
        x = (torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2).float() - mean) * scale
        y = torch.from_numpy(targets).to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
            logits = model(x)
        loss = nn.functional.cross_entropy(logits.float(), y, label_smoothing=recipe.smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        _average(averaged, model, decay=min(recipe.averaging, (1 + step) / (10 + step)))

        tally.add(loss.item(), int((logits.argmax(1) == y).sum()), len(y), time.monotonic() - clock)
        done = step + 1
        if done % steps_per_epoch == 0:
            history.loss.append(tally.loss)
            history.accuracy.append(tally.accuracy)
            history.validation.append(validate(averaged))
            history.seconds.append(tally.seconds)
            tally = Tally()
            checkpoints.save(checkpoint, identity, changing, {"history": history, "tally": tally}, done)
        progress(_report(done, steps, steps_per_epoch, batch, tally, history, recipe))
        if stop() and done < steps:
            checkpoints.save(checkpoint, identity, changing, {"history": history, "tally": tally}, done)
            raise InterruptedFit(
                f"stopped in epoch {done // steps_per_epoch + 1} of {recipe.epochs}; go on with --resume"
            )
        clock = time.monotonic()
    if recipe.old_share:
        _average(averaged, old, decay=1 - recipe.old_share)
    return averaged, history


# -- Rates ------------------------------------------------------------------------------------------


def _parameter_groups(model: network.Network, recipe: Recipe) -> list[dict[str, Any]]:
    """Parameters by how fast they learn and whether they decay.

    The first stages see edges and textures, which are everybody's: they change least (Howard and Ruder 2018,
    "discriminative fine-tuning").
    """
    depth = {"fc": None, "layer4": 0, "layer3": 1, "layer2": 2}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        stage = depth.get(name.split(".", maxsplit=1)[0], 3)
        factor = recipe.head_factor if stage is None else recipe.depth_factor**stage
        groups.setdefault((factor, parameter.ndim > 1), []).append(parameter)
    return [
        {"params": parameters, "factor": factor, "weight_decay": recipe.weight_decay if decays else 0.0}
        for (factor, decays), parameters in groups.items()
    ]


def _rate(share: float, recipe: Recipe) -> float:
    """The learning rate when `share` of the run is done: up in a line, down in half a cosine."""
    if share < recipe.warm_up:
        return recipe.rate * (share / recipe.warm_up * 0.99 + 0.01)
    down = (share - recipe.warm_up) / (1 - recipe.warm_up)
    return recipe.rate * (0.5 * (1 + math.cos(math.pi * down)) + 0.001)


def _average(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the averaged weights, and batch norm's statistics, towards the newest (Polyak and Juditsky 1992)."""
    with torch.no_grad():
        for old, new in zip(averaged.state_dict().values(), model.state_dict().values(), strict=True):
            if old.is_floating_point():
                old.lerp_(new, 1 - decay)
            else:
                old.copy_(new)


# -- Pictures ---------------------------------------------------------------------------------------


def _pictures(
    photos: Photos, recipe: Recipe, seed: int, batch: int, steps_per_epoch: int, steps: range
) -> Iterator[tuple[int, Pixels, NDArray[np.int64]]]:
    """Step number, pictures (n, S, S, 3) and class numbers (n,) of each step, made ahead by a thread."""
    total = steps_per_epoch * recipe.epochs
    orders: dict[int, NDArray[np.int64]] = {}

    def make(step: int) -> tuple[int, Pixels, NDArray[np.int64]]:
        epoch, place = divmod(step, steps_per_epoch)
        if epoch not in orders:
            orders.clear()
            orders[epoch] = _order(photos, recipe, np.random.default_rng((seed, 1, epoch)))
        chosen = orders[epoch][place * batch : (place + 1) * batch]
        random = np.random.default_rng((seed, 2, step))
        size = picture_size(step / total, recipe)
        pictures = augment.batch(
            [photos.pixels(index) for index in chosen], size, recipe.augmentation, random
        )
        return step, pictures, photos.targets[chosen]

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="pictures") as thread:
        ahead: deque[Future[tuple[int, Pixels, NDArray[np.int64]]]] = deque()
        for step in steps:
            ahead.append(thread.submit(make, step))
            if len(ahead) > 3:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def picture_size(share: float, recipe: Recipe) -> int:
    """Side of the training pictures when `share` of the run is done: grows in steps of 16 pixels."""
    grown = recipe.first_size + (recipe.last_size - recipe.first_size) * min(share / 0.8, 1.0)
    return min(max(round(grown / 16) * 16, min(16, recipe.last_size)), recipe.last_size)


def _order(photos: Photos, recipe: Recipe, random: np.random.Generator) -> NDArray[np.int64]:
    """The photos of one epoch, as many as there are, in random order.

    With equal weights each comes once. Photos of a rare class, and those whose label is trusted more, come more
    often: a photo's share of the epoch is its weight's, rounded up or down at random so that the mean is right.
    """
    counts = np.bincount(photos.targets)
    weights = photos.weights * (counts.max() / np.maximum(counts, 1))[photos.targets] ** recipe.balance
    shuffled = random.permutation(len(weights))
    ends = np.cumsum(weights[shuffled])
    points = (random.random() + np.arange(len(weights))) * (ends[-1] / len(weights))
    chosen: NDArray[np.int64] = shuffled[
        np.minimum(np.searchsorted(ends, points, side="right"), len(weights) - 1)
    ]
    return random.permutation(chosen)


# -- Keeping count ----------------------------------------------------------------------------------


@dataclass
class Tally:
    """Loss, hits and time since the epoch began."""

    steps: int = 0
    photos: int = 0
    right: int = 0
    total_loss: float = 0.0
    seconds: float = 0.0

    def add(self, loss: float, right: int, photos: int, seconds: float) -> None:
        """Count one step."""
        self.steps += 1
        self.photos += photos
        self.right += right
        self.total_loss += loss
        self.seconds += seconds

    @property
    def loss(self) -> float:
        """Mean loss of a step."""
        return self.total_loss / max(self.steps, 1)

    @property
    def accuracy(self) -> float:
        """Share of pictures that were told right."""
        return self.right / max(self.photos, 1)


def _report(
    done: int, steps: int, steps_per_epoch: int, batch: int, tally: Tally, history: History, recipe: Recipe
) -> Progress:
    fresh = tally.steps == 0  # an epoch has just ended: tell its figures
    seconds_a_step = (history.seconds[-1] / steps_per_epoch) if fresh else tally.seconds / tally.steps
    return Progress(
        epoch=min((done - 1) // steps_per_epoch + 1, recipe.epochs),
        epochs=recipe.epochs,
        step=done,
        steps=steps,
        loss=history.loss[-1] if fresh else tally.loss,
        accuracy=history.accuracy[-1] if fresh else tally.accuracy,
        validation=history.validation[-1] if history.validation else None,
        photos_per_second=batch / max(seconds_a_step, 1e-9),
        seconds_left=_work(done, steps, recipe) * seconds_a_step,
    )


def _work(done: int, steps: int, recipe: Recipe) -> float:
    """The steps that are left, counted in steps of the present picture size: later ones are larger and slower."""
    now = picture_size(max(done - 1, 0) / steps, recipe) ** 2
    return sum(picture_size(step / steps, recipe) ** 2 for step in range(done, steps)) / now


# -- Measuring --------------------------------------------------------------------------------------


def validation_accuracy(
    model: network.Network, pictures: Pixels, targets: NDArray[np.int64], device: torch.device
) -> float:
    """Accuracy of `model` on pictures (n, S, S, 3) uint8."""
    serving = network.Serving(model).to(device).eval()
    autocast = device.type == "cuda" or (device.type == "cpu" and network.bfloat16_is_fast())
    right = 0
    with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
        for start in range(0, len(targets), 32):
            logits, _ = serving(torch.from_numpy(pictures[start : start + 32]).to(device))
            right += int((logits.argmax(1).cpu().numpy() == targets[start : start + 32]).sum())
    return right / max(len(targets), 1)
