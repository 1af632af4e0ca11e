"""From logits and features of held-out photos to the decision rule: temperature, familiarity, thresholds.

All of it is fitted on what the serving graph itself answers: the rule must suit the graph that the daemon runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from pawsort.decision import Familiarity, Floats, Judgement, Look, Rule, softmax

Numbers = NDArray[np.float64]
Classes = NDArray[np.int64]

TARGET_PRECISION = 0.995
# Familiarity is one half at the distance that this share of validation photos stays below ...
FAMILIAR_SHARE = 0.985
# ... and the logistic curve is so steep that this share of them loses next to nothing.
UNTOUCHED_SHARE = 0.9
# A threshold this close to one would send nearly everything to review; higher ones tell nothing apart any more.
_HIGHEST_THRESHOLD = 0.999
# Share of labels that are taken to be wrong. Northcutt et al. 2021 ("Pervasive Label Errors in Test Sets") found 3.3 %
# on average in ten well-kept data sets; folders that somebody looks at every day should be a little better.
LABEL_NOISE = 0.02
# As in any test of significance: mistakes this improbable under the target are taken as proof that it is missed.
SURPRISE = 0.05
# Share of an earlier look's final answers that the last look may contradict or doubt. Those that it doubts are nearly
# all right (see docs/training.md), so this costs far less precision than it seems.
MOST_OVERTURNED = 0.01


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a graph answers to n photos, seen in V views: `logits` (n, V, K), `features` (n, V, D)."""

    logits: Floats
    features: Floats

    def of(self, look: Sequence[int]) -> Answers:
        """The answers to some of the views."""
        return Answers(logits=self.logits[:, list(look)], features=self.features[:, list(look)])


def temperature(logits: Floats, targets: Classes) -> float:
    """The temperature under which `logits` (n, K) are likeliest to give `targets` (Guo et al. 2017).

    A share LABEL_NOISE of the labels is taken to be random. Without that, one photo in the wrong folder of which the
    network is rightly certain would make the fit call every other photo doubtful.
    """
    classes = logits.shape[1]

    def loss(logarithm: float) -> float:
        probabilities = softmax(logits.astype(np.float64) / np.exp(logarithm))[
            np.arange(len(targets)), targets
        ]
        return float(-np.log((1 - LABEL_NOISE) * probabilities + LABEL_NOISE / classes).mean())

    # A handful of photos without a mistake would ask for a temperature of 0: never below a tenth.
    found = optimize.minimize_scalar(loss, bounds=(np.log(0.1), np.log(10.0)), method="bounded")
    return float(np.exp(found.x))


def familiarity(
    features: Floats, targets: Classes, held_out: Floats, *, classes: int, shrinkage: float = 0.1
) -> Familiarity:
    """What is familiar: means and shared covariance of training `features` (n, D), its scale of `held_out` (m, D).

    The scale comes from photos that were not learned from, because those that were lie closer to their means.
    """
    length = features.shape[1]
    values = features.astype(np.float64)
    means = np.stack([values[targets == number].mean(axis=0) for number in range(classes)])
    centred = values - means[targets]
    covariance = centred.T @ centred / len(values)
    # Fewer photos than dimensions leave directions without any variance; a share of the mean variance fills them.
    covariance = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / length * np.eye(length)
    variances, directions = np.linalg.eigh(covariance)
    whitening = (directions / np.sqrt(np.maximum(variances, 1e-12))).astype(np.float32)
    unscaled = Familiarity(
        means=(means.astype(np.float32) @ whitening), whitening=whitening, centre=0.0, scale=1.0
    )
    distances = unscaled.distance(held_out)
    untouched, centre = np.quantile(distances, [UNTOUCHED_SHARE, FAMILIAR_SHARE])
    # The logistic curve is 0.99 at 4.6 scales below its centre.
    scale = max((centre - untouched) / 4.6, 0.01 * centre, 1e-6)
    return Familiarity(means=unscaled.means, whitening=whitening, centre=float(centre), scale=float(scale))


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A threshold and what it was chosen for, as it stands in the bundle."""

    value: float
    target_precision: float
    precision: float  # reached on the photos that it was chosen with
    coverage: float  # share of them at or above it
    photos: int


def threshold(confidence: Floats, right: NDArray[np.bool_], target: float) -> Threshold:
    """The lowest threshold above which confidence promises `target` precision and the hits do not belie it.

    The mean of calibrated confidence is the precision to expect. The hits alone would be a matter of luck: among 300
    photos, one mistake more or less is all that lies between 99.3 % and 99.7 %. So they only have a veto: where so
    many mistakes would be a surprise (under SURPRISE) if the target were met, the threshold has to be higher.
    """
    order = np.argsort(-confidence, kind="stable")
    ranked = confidence[order].astype(np.float64)
    counts = np.arange(1, len(ranked) + 1)
    promised = np.cumsum(ranked) / counts
    mistakes = np.cumsum(~right[order])
    plausible = stats.binom.sf(mistakes - 1, counts, 1 - target) >= SURPRISE
    # Between equal confidences no threshold can be drawn.
    last_of_equals = np.append(ranked[1:] != ranked[:-1], True)
    good = np.flatnonzero((promised >= target) & plausible & last_of_equals)
    if len(good):
        index = int(good[-1])
        below = ranked[index + 1] if index + 1 < len(ranked) else 0.0
        value = min((ranked[index] + below) / 2, _HIGHEST_THRESHOLD)
    else:
        value = _HIGHEST_THRESHOLD
    chosen = confidence >= value
    return Threshold(
        value=float(value),
        target_precision=target,
        precision=float(right[chosen].mean()) if chosen.any() else 1.0,
        coverage=float(chosen.mean()),
        photos=len(confidence),
    )


def early_threshold(early: Judgement, last: Judgement, last_threshold: float) -> float:
    """The least confidence at which the answer of an earlier look may stand without the last one.

    As low as it can be while at most MOST_OVERTURNED of the answers that stand would have been another, or none,
    after the last look; and well above the last look's own threshold.
    """
    same = early.probabilities.argmax(axis=1) == last.probabilities.argmax(axis=1)
    overturned = ~same | (last.confidence < last_threshold)
    order = np.argsort(-early.confidence, kind="stable")
    shares = np.cumsum(overturned[order]) / np.arange(1, len(order) + 1)
    good = np.flatnonzero(shares <= MOST_OVERTURNED)
    lowest = float(early.confidence[order[good[-1]]]) if len(good) else _HIGHEST_THRESHOLD
    return min(max(lowest, (1 + last_threshold) / 2), _HIGHEST_THRESHOLD)


def expected_calibration_error(confidence: Floats, right: NDArray[np.bool_], bins: int = 15) -> float:
    """Mean gap between confidence and share right over equally wide bins (Naeini et al. 2015), 0..1."""
    if not len(confidence):
        return 0.0
    number = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        (number == index).mean() * abs(confidence[number == index].mean() - right[number == index].mean())
        for index in range(bins)
        if (number == index).any()
    ]
    return float(sum(gaps))


def rule(
    labels: tuple[str, ...],
    looks: Sequence[Sequence[int]],
    learned: Answers,
    learned_targets: Classes,
    held_out: Answers,
    targets: Classes,
    target_precision: float,
) -> tuple[Rule, dict[str, object]]:
    """The decision rule for `looks` (each a list of views), and how it was chosen.

    `learned` are the answers to training photos: they say what is familiar. `held_out` are those to validation
    photos: they say how sure is sure.
    """
    # One and the same familiarity judges one view and the mean of many, so it is fitted on both.
    familiar = familiarity(
        np.concatenate([learned.features[:, list(look)].mean(axis=1) for look in looks]),
        np.tile(learned_targets, len(looks)),
        np.concatenate([held_out.features[:, list(look)].mean(axis=1) for look in looks]),
        classes=len(labels),
    )
    fitted, judgements = [], []
    for views in looks:
        answers = held_out.of(views)
        look = Look(
            views=tuple(views), temperature=temperature(answers.logits.mean(axis=1), targets), threshold=1.0
        )
        rule_of_one = Rule(labels=labels, looks=(look,), familiarity=familiar)
        fitted.append(look)
        judgements.append(rule_of_one.judge(look, answers.logits, answers.features))
    last = judgements[-1]
    chosen = threshold(last.confidence, last.probabilities.argmax(axis=1) == targets, target_precision)
    thresholds = [early_threshold(early, last, chosen.value) for early in judgements[:-1]]
    final = tuple(
        replace(look, threshold=value)
        for look, value in zip(fitted, [*thresholds, chosen.value], strict=True)
    )
    told = {**asdict(chosen), "label_noise": LABEL_NOISE, "early_thresholds": thresholds}
    return Rule(labels=labels, looks=final, familiarity=familiar), told
