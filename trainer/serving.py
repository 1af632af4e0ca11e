"""A trained network -> what serves: a graph that was held against the network, and a decision rule that suits it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pawsort import decision, image, network
from trainer import calibrate, dataset, export
from trainer.cache import PhotoCache
from trainer.dataset import Origin
from trainer.listener import Listener

VIEWS = ("centre", "whole", "centre-flipped", "whole-flipped")
# The first look is what one inference gives; each further one costs more views, for the few that need it.
LOOKS = ((0,), (0, 1), (0, 1, 2, 3))
# More would sharpen the statistics of the features no further, and cost time.
_STATISTICS_PHOTOS = 600
# How much a label counts that the daemon guessed and nobody took exception to; a person's counts 1.
PREDICTED_TRUST = 1 / 3
_CHECK_PHOTOS = 300  # training photos, beside all validation photos, that int8 is held against float on


class CachedPhotos:
    """Examples of one side, as `fit.train` wants them."""

    def __init__(self, examples: Sequence[dataset.Example], labels: Sequence[str], cache: PhotoCache) -> None:
        self._cache = cache
        self._examples = examples
        targets = [labels.index(example.label) for example in examples]
        self.targets: NDArray[np.int64] = np.array(targets, dtype=np.int64)
        trust = [PREDICTED_TRUST if example.origin is Origin.PREDICTED else 1.0 for example in examples]
        self.weights: NDArray[np.float64] = np.array(trust, dtype=np.float64)

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """See fit.Photos."""
        return self._cache.pixels(self._examples[index].sha256)

    def views(self, size: int, names: Sequence[str]) -> NDArray[np.uint8]:
        """The views (n, V, size, size, 3) of all photos."""
        views = [
            [image.view(self.pixels(index), name, size) for name in names]
            for index in range(len(self._examples))
        ]
        return np.array(views, dtype=np.uint8)


def serving_graph(
    model: network.Network,
    train: CachedPhotos,
    validation: CachedPhotos,
    *,
    size: int,
    seed: int,
    listener: Listener,
) -> tuple[export.Graph, dict[str, Any]]:
    """The int8 graph if it holds against float, photo by photo; else the float graph. And what bundle.json tells."""
    random = np.random.default_rng((seed, 3))
    exact = export.float_graph(model, size)
    calibration = random.permutation(len(train.targets))[: export.CALIBRATION_PICTURES]
    small = export.quantised(
        exact, [image.view(train.pixels(index), "centre", size) for index in calibration]
    )

    # Validation photos in every view but the mirrored. In one view alone, a single photo of 300 that falls on the other
    # side of a line would be more than the loss that is allowed.
    upright = [name for name in VIEWS if not name.endswith("-flipped")]
    checked = random.permutation(len(train.targets))[:_CHECK_PHOTOS]
    pictures = [image.view(train.pixels(index), "centre", size) for index in checked]
    pictures += [view for views in validation.views(size, upright) for view in views]
    targets = np.concatenate([train.targets[checked], np.repeat(validation.targets, len(upright))])
    held_out = np.arange(len(targets)) >= len(checked)
    reference, found = (
        np.concatenate([export.answer(compiled, np.stack(part))[0] for part in _parts(pictures, 16)])
        for compiled in (export.compile_graph(exact, exact=True), export.compile_graph(small))
    )
    result = export.check(reference, found, targets, held_out)
    told = {"quantization_check": asdict(result)}
    if result.passed:
        return small, {"precision": "int8", **told}
    listener.note(
        f"int8 moves {result.labels_moved:.1%} of the labels and loses {result.accuracy_lost:.1%} of accuracy: "
        "the model keeps its float graph"
    )
    return exact, {"precision": "float", **told}


def decision_rule(
    graph: export.Graph,
    labels: tuple[str, ...],
    train: CachedPhotos,
    validation: CachedPhotos,
    *,
    size: int,
    seed: int,
    target_precision: float,
) -> tuple[decision.Rule, dict[str, Any]]:
    """The decision rule, and what bundle.json says about how it was chosen."""
    compiled = export.compile_graph(graph)
    random = np.random.default_rng((seed, 4))
    sample = random.permutation(len(train.targets))[:_STATISTICS_PHOTOS]
    learned = _answers(compiled, train, sample, size)
    held_out = _answers(compiled, validation, np.arange(len(validation.targets)), size)
    return calibrate.rule(
        labels, LOOKS, learned, train.targets[sample], held_out, validation.targets, target_precision
    )


def _answers(
    compiled: export.Graph, photos: CachedPhotos, indices: NDArray[np.int64], size: int
) -> calibrate.Answers:
    logits, features = [], []
    for index in indices:
        pixels = photos.pixels(index)
        answered = export.answer(compiled, np.stack([image.view(pixels, name, size) for name in VIEWS]))
        logits.append(answered[0])
        features.append(answered[1])
    return calibrate.Answers(logits=np.stack(logits), features=np.stack(features))


def _parts(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
