"""Logits and features of a photo's views -> a label, or "unsure".

The rule is data, stored in the bundle and chosen by the trainer on validation photos. It has two parts, multiplied
into one number, the confidence:

* how sure the network is: the soft-max of the logits at a fitted temperature (Guo et al. 2017, "On Calibration of
  Modern Neural Networks");
* how familiar the photo looks: the Mahalanobis distance of its features to the nearest class mean under one shared
  covariance (Lee et al. 2018, "A Simple Unified Framework for Detecting Out-of-Distribution Samples"), squeezed into
  0..1 by a logistic curve. A photo of none of the classes lies far from all of them, however sure the soft-max is.

A rule has one or more looks. Each look averages some of the photo's views; the answer of a look stands when its
confidence reaches the look's threshold, otherwise the next look, which costs more, decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Look:
    """One look at a photo.

    `views` are indices into the bundle's list of views; their logits and features are averaged.
    `threshold` is the least confidence, 0..1, at which the answer of this look stands.
    """

    views: tuple[int, ...]
    temperature: float
    threshold: float


@dataclass(frozen=True, kw_only=True)
class Familiarity:
    """How much a photo looks like the photos the model was trained on.

    `means`: (K, D) class means of the features after whitening. `whitening`: (D, R), such that the squared length of
    `(x - mean) @ whitening` is the squared Mahalanobis distance. `centre` is the distance at which familiarity is one
    half, `scale` the width of the logistic curve, both in units of the distance (not squared).
    """

    means: Floats
    whitening: Floats
    centre: float
    scale: float

    def distance(self, features: Floats) -> Floats:
        """Mahalanobis distance (n,) of features (n, D) to the nearest class mean."""
        white = features @ self.whitening
        squared = (
            (white * white).sum(axis=1, keepdims=True)
            - 2.0 * white @ self.means.T
            + (self.means * self.means).sum(axis=1)
        )
        nearest: Floats = np.sqrt(np.maximum(squared.min(axis=1), 0.0))
        return nearest

    def __call__(self, features: Floats) -> Floats:
        """Familiarity (n,), 0..1, of features (n, D)."""
        exponent = np.clip((self.distance(features) - self.centre) / self.scale, -60.0, 60.0)
        familiar: Floats = (1.0 / (1.0 + np.exp(exponent))).astype(np.float32)
        return familiar


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What one look makes of n photos: `probabilities` (n, K), `familiarity` (n,), `confidence` (n,)."""

    probabilities: Floats
    familiarity: Floats
    confidence: Floats


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What was decided about one photo.

    `label` is None when the model is unsure; `best` is the likeliest class all the same. `probabilities` has one
    calibrated value a class, in the order of the bundle's labels; `confidence` is the largest of them times
    `familiarity`. `look` is the number of the look that decided, from 0.
    """

    label: str | None
    best: str
    confidence: float
    familiarity: float
    probabilities: tuple[float, ...]
    threshold: float
    look: int

    @property
    def reason(self) -> str | None:
        """Why there is no label, for a person; None when there is one."""
        if self.label is not None:
            return None
        if self.confidence < self.threshold <= max(self.probabilities):
            return f"unlike the photos that the model knows (confidence {self.confidence:.3f} < {self.threshold:.3f})"
        return f"unsure between classes (confidence {self.confidence:.3f} < {self.threshold:.3f})"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The decision rule of one model: its labels, its looks in order, and what is familiar to it."""

    labels: tuple[str, ...]
    looks: tuple[Look, ...]
    familiarity: Familiarity | None = None

    def judge(self, look: Look, logits: Floats, features: Floats) -> Judgement:
        """Judge logits (n, v, K) and features (n, v, D) of the v views of `look`."""
        probabilities = softmax(logits.mean(axis=1) / np.float32(look.temperature))
        if self.familiarity is None:
            familiarity = np.ones(len(probabilities), dtype=np.float32)
        else:
            familiarity = self.familiarity(features.mean(axis=1))
        return Judgement(
            probabilities=probabilities,
            familiarity=familiarity,
            confidence=probabilities.max(axis=1) * familiarity,
        )

    def decisions(self, number: int, judgement: Judgement, threshold: float) -> list[Decision]:
        """Decide on every photo of a judgement made by look `number`, at the given threshold."""
        best = judgement.probabilities.argmax(axis=1)
        return [
            Decision(
                label=self.labels[index] if confidence >= threshold else None,
                best=self.labels[index],
                confidence=float(confidence),
                familiarity=float(familiarity),
                probabilities=tuple(probabilities.tolist()),
                threshold=threshold,
                look=number,
            )
            for index, confidence, familiarity, probabilities in zip(
                best.tolist(),
                judgement.confidence.tolist(),
                judgement.familiarity.tolist(),
                judgement.probabilities,
                strict=True,
            )
        ]


def softmax(logits: Floats) -> Floats:
    """Soft-max over the last axis, shifted so that it cannot overflow."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: Floats = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return probabilities
