"""A model on photos whose class is known: what the daemon would have done with each, and what that adds up to.

Photos go the daemon's way: from the file through its decoders, its views, its serving graph, its rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pawsort import decoders, image
from pawsort.classifier import Classifier
from pawsort.decision import Decision
from trainer import calibrate, reading
from trainer.listener import ignored
from trainer.reading import Skipped

_BATCH = 16  # photos classified at a time


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One photo and what was decided about it. `label` is None for a photo of no class."""

    path: Path
    label: str | None
    sha256: str
    decision: Decision

    @property
    def right(self) -> bool:
        """Whether the likeliest class is the photo's, be the model sure of it or not."""
        return self.decision.best == self.label


@dataclass(frozen=True, kw_only=True)
class Judgements:
    """All photos that could be read, in the order given, and those that could not."""

    photos: tuple[Judged, ...]
    skipped: tuple[Skipped, ...] = field(default=())


def judge(
    classifier: Classifier,
    paths: Sequence[Path],
    labels: Sequence[str | None],
    *,
    limits: image.Limits,
    workers: int,
    progress: Callable[[int, int], None] = ignored,
) -> Judgements:
    """Have `classifier` decide about every photo."""
    render = image.Render(size=classifier.bundle.size, views=classifier.bundle.views)
    judged: dict[int, Judged] = {}
    skipped: list[Skipped] = []
    batch: list[tuple[int, decoders.Decoded]] = []

    def classify() -> None:
        decisions = classifier.classify(np.stack([decoded.views for _, decoded in batch]))
        for (index, decoded), decision in zip(batch, decisions, strict=True):
            judged[index] = Judged(
                path=paths[index], label=labels[index], sha256=decoded.sha256, decision=decision
            )
        batch.clear()

    for index, result in reading.read(paths, render, limits, workers=workers):
        if isinstance(result, Skipped):
            skipped.append(result)
        else:
            batch.append((index, result))
            if len(batch) == _BATCH:
                classify()
        progress(len(judged) + len(skipped), len(paths))
    if batch:
        classify()
    progress(len(paths), len(paths))
    return Judgements(
        photos=tuple(judged[index] for index in sorted(judged)),
        skipped=tuple(sorted(skipped, key=lambda photo: photo.path)),
    )


def metrics(photos: Sequence[Judged], labels: Sequence[str]) -> dict[str, Any]:
    """The figures of photos with known classes; shares are 0..1, and None where there is nothing to divide by."""
    right = np.array([photo.right for photo in photos], dtype=bool)
    confidence = np.array([photo.decision.confidence for photo in photos])
    probability = np.array([max(photo.decision.probabilities) for photo in photos])
    sorted_ = np.array([photo.decision.label is not None for photo in photos], dtype=bool)
    confusion = {
        true: dict.fromkeys(labels, 0) for true in sorted({photo.label or "" for photo in photos} | {*labels})
    }
    for photo in photos:
        confusion[photo.label or ""][photo.decision.best] += 1
    per_class = {}
    for label, row in confusion.items():
        of_class = sum(row.values())
        called = sum(other.get(label, 0) for other in confusion.values())
        hits = row.get(label, 0)
        per_class[label] = {
            "recall": _share(hits, of_class),
            "precision": _share(hits, called),
            "n": of_class,
        }
    return {
        "n": len(photos),
        "accuracy": _share(int(right.sum()), len(right)),
        "per_class": per_class,
        "confusion": confusion,
        "auto_sorted": _share(int(sorted_.sum()), len(sorted_)),
        "auto_sorted_precision": _share(int(right[sorted_].sum()), int(sorted_.sum())),
        "ece": calibrate.expected_calibration_error(probability, right),
        "ece_confidence": calibrate.expected_calibration_error(confidence, right),
        "second_look": _share(sum(photo.decision.look > 0 for photo in photos), len(photos)),
    }


def other_metrics(photos: Sequence[Judged], others: Sequence[Judged]) -> dict[str, Any]:
    """How well photos of no class are told from photos of the classes, by confidence."""
    known = np.array([photo.decision.confidence for photo in photos])
    unknown = np.array([photo.decision.confidence for photo in others])
    taken = [photo for photo in others if photo.decision.label is not None]
    return {
        "other_n": len(others),
        "other_auroc": auroc(known, unknown),
        "other_auto_sorted": _share(len(taken), len(others)),
        "other_auto_sorted_files": [str(photo.path) for photo in taken],
    }


def auroc(higher: NDArray[np.floating[Any]], lower: NDArray[np.floating[Any]]) -> float | None:
    """Chance that a random one of `higher` exceeds a random one of `lower`, ties counting half."""
    if not len(higher) or not len(lower):
        return None
    ordered = np.sort(lower)
    below = np.searchsorted(ordered, higher, side="left")
    not_above = np.searchsorted(ordered, higher, side="right")
    return float(((below + not_above) / 2).mean() / len(lower))


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
