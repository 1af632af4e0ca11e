"""A model at work: pictures in, decisions out. The daemon and the trainer's evaluation run this same code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pawsort import bundle, errors
from pawsort.bundle import Bundle
from pawsort.decision import Decision
from pawsort.engine import Engine, Kind, open_engine


class Classifier:
    """A bundle together with an engine that runs it.

    `threshold`, when given, replaces the thresholds that the bundle was made with.
    """

    def __init__(self, bundle: Bundle, engine: Engine, threshold: float | None = None) -> None:
        self.bundle = bundle
        self.engine = engine
        self.rule = bundle.rule
        self._thresholds = [look.threshold if threshold is None else threshold for look in self.rule.looks]

    @property
    def threshold(self) -> float:
        """The confidence below which the last look's answer is "unsure"."""
        return self._thresholds[-1]

    def classify(self, pictures: NDArray[np.uint8]) -> list[Decision]:
        """Decide on n photos, given as their views: (n, V, S, S, 3) uint8, RGB.

        The first look is taken at all of them, each further look only at those that are still unsure.
        Each view of a photo is inferred at most once.
        """
        photos, views = pictures.shape[:2]
        if views != len(self.bundle.views):
            message = f"{self.bundle.name} wants {len(self.bundle.views)} views of a photo, got {views}"
            raise ValueError(message)
        logits = np.zeros((photos, views, len(self.rule.labels)), dtype=np.float32)
        features = np.zeros((photos, views, self.bundle.feature_length), dtype=np.float32)
        inferred: set[int] = set()
        decisions: list[Decision] = []
        undecided = np.arange(photos)
        for number, (look, threshold) in enumerate(zip(self.rule.looks, self._thresholds, strict=True)):
            if not len(undecided):
                break
            fresh = np.array([view for view in look.views if view not in inferred], dtype=np.intp)
            if len(fresh):
                # All of them in one call: an engine does many pictures at once in less time than one by one.
                wanted = np.ix_(undecided, fresh)
                answers = self.engine.infer(pictures[wanted].reshape(-1, *pictures.shape[2:]))
                logits[wanted], features[wanted] = (
                    answer.reshape(len(undecided), len(fresh), -1) for answer in answers
                )
                inferred.update(fresh.tolist())
            seen = np.ix_(undecided, np.array(look.views))
            judgement = self.rule.judge(look, logits[seen], features[seen])
            latest = self.rule.decisions(number, judgement, threshold)
            if number == 0:
                decisions = latest
            else:
                for index, decision in zip(undecided.tolist(), latest, strict=True):
                    decisions[index] = decision
            undecided = undecided[[decision.label is None for decision in latest]]
        return decisions

    def smoke_test(self) -> None:
        """Ask the model once and check that the answer is one: shapes, finite, the sum of probabilities.

        Raises ModelError. A model that does not answer must never begin to serve.
        """
        size = self.bundle.size
        grey = np.full((2, len(self.bundle.views), size, size, 3), 128, dtype=np.uint8)
        flat = grey.reshape(-1, size, size, 3)
        try:
            logits, features = self.engine.infer(flat)
        except RuntimeError as error:
            message = f"{self.bundle.name}: does not answer: {error}"
            raise errors.ModelError(message) from error
        expected = (len(flat), len(self.rule.labels)), (len(flat), self.bundle.feature_length)
        if (logits.shape, features.shape) != expected:
            message = f"{self.bundle.name}: answered with shapes {logits.shape} and {features.shape}, not {expected}"
            raise errors.ModelError(message)
        if not (np.isfinite(logits).all() and np.isfinite(features).all()):
            message = f"{self.bundle.name}: answered with numbers that are not finite"
            raise errors.ModelError(message)
        for decision in self.classify(grey):
            if not np.isclose(sum(decision.probabilities), 1.0, atol=1e-3):
                message = f"{self.bundle.name}: probabilities do not add up to one: {decision.probabilities}"
                raise errors.ModelError(message)


def open_classifier(
    folder: Path,
    *,
    kind: Kind = "auto",
    threshold: float | None = None,
    threads: int | None = None,
    cache: Path | None = None,
) -> Classifier:
    """The model in `folder`, loaded, verified and asked once. Raises ModelError.

    The other arguments are those of `engine.open_engine` and of `Classifier`.
    """
    model = bundle.load(folder)
    classifier = Classifier(model, open_engine(kind, model, threads=threads, cache=cache), threshold)
    classifier.smoke_test()
    return classifier
