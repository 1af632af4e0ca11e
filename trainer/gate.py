"""Challenger against champion: does the new model serve? Both are asked about photos that neither has learned from.

These are the held-out photos, of the test and the validation side: a young collection has too few to do without the
latter. Something was chosen with those: how sure a model has to be, which hardly changes what it takes a photo for, and
whether it serves as 8-bit or float, which can favour a newcomer by the photos that 8-bit gets wrong.

It does serve if it is not worse: it breaks no more photos than it fixes, and no class loses more recall than is
allowed. Both models go the daemon's way, from the file to the decision (pawsort.classifier).

One thing more is asked. Photos that people corrected are on the list because the old model, or one before it, had
them wrong: against these any newcomer looks good. So among the photos that were placed, whose being here has nothing
to do with what a model said, the challenger must not be worse beyond chance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from typing import Any

from trainer.dataset import Example, Origin
from trainer.evaluate import Judged

# Rarer than this among placed photos is no accident (one-sided).
CHANCE = 0.05


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A photo, and what each of the two said."""

    champion: Judged
    challenger: Judged
    origin: Origin


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Which of the two serves, and why."""

    champion: str
    fixed: tuple[Pair, ...]  # the champion had them wrong, the challenger right
    broken: tuple[Pair, ...]  # the other way round
    both_right: int
    both_wrong: int
    recall: Mapping[str, tuple[float, float, int]]  # label -> the champion's, the challenger's, photos
    placed: tuple[int, int]  # fixed and broken among the placed photos
    max_recall_loss: float
    reasons: tuple[str, ...]  # why the challenger is refused; none: it is not
    forced: bool  # it serves whatever the reasons

    @property
    def passed(self) -> bool:
        """Whether the challenger is no worse."""
        return not self.reasons

    @property
    def serves(self) -> bool:
        """Whether the challenger is to become the current model."""
        return self.passed or self.forced

    @property
    def photos(self) -> int:
        """Held-out photos that both were asked about."""
        return len(self.fixed) + len(self.broken) + self.both_right + self.both_wrong

    @property
    def p_value(self) -> float:
        """How likely so uneven a split of the changed photos is if the models are equally good, 0..1."""
        return mcnemar(len(self.fixed), len(self.broken))

    def document(self) -> dict[str, Any]:
        """As it stands in bundle.json under "gate"; pawsort.registry reads `passed` and `forced`."""
        right = self.both_right
        return {
            "passed": self.passed,
            "forced": self.forced and not self.passed,
            "reasons": list(self.reasons),
            "champion": self.champion,
            "n": self.photos,
            "accuracy": {
                "champion": (right + len(self.broken)) / max(self.photos, 1),
                "challenger": (right + len(self.fixed)) / max(self.photos, 1),
            },
            "fixed": len(self.fixed),
            "broken": len(self.broken),
            "both_right": self.both_right,
            "both_wrong": self.both_wrong,
            "p_value": self.p_value,
            "placed": {"fixed": self.placed[0], "broken": self.placed[1]},
            "max_recall_loss": self.max_recall_loss,
            "recall": {
                label: {"champion": before, "challenger": after, "n": n}
                for label, (before, after, n) in self.recall.items()
            },
        }


def hold(
    champion: str,
    old: Sequence[Judged],
    new: Sequence[Judged],
    examples: Sequence[Example],
    *,
    max_recall_loss: float,
    forced: bool = False,
) -> Verdict:
    """The verdict, from what the champion (`old`) and the challenger (`new`) said of the held-out photos `examples`.

    Photos that one of the two could not be asked about, because they are gone by now, count for neither.
    """
    origins = {example.sha256: example.origin for example in examples}
    answered = {judged.sha256: judged for judged in old}
    pairs = [
        Pair(champion=answered[judged.sha256], challenger=judged, origin=origins[judged.sha256])
        for judged in new
        if judged.sha256 in answered and judged.sha256 in origins
    ]
    fixed = tuple(pair for pair in pairs if pair.challenger.right and not pair.champion.right)
    broken = tuple(pair for pair in pairs if pair.champion.right and not pair.challenger.right)
    placed = (
        sum(pair.origin is Origin.PLACED for pair in fixed),
        sum(pair.origin is Origin.PLACED for pair in broken),
    )
    recall = _recall(pairs)
    return Verdict(
        champion=champion,
        fixed=fixed,
        broken=broken,
        both_right=sum(pair.champion.right and pair.challenger.right for pair in pairs),
        both_wrong=sum(not pair.champion.right and not pair.challenger.right for pair in pairs),
        recall=recall,
        placed=placed,
        max_recall_loss=max_recall_loss,
        reasons=tuple(_reasons(len(pairs), len(fixed), len(broken), placed, recall, max_recall_loss)),
        forced=forced,
    )


def mcnemar(fixed: int, broken: int) -> float:
    """Two-sided p-value of McNemar's exact test (1947): `fixed` and `broken` as two sides of a fair coin."""
    return min(2 * _tail(max(fixed, broken), fixed + broken), 1.0)


def _tail(at_least: int, tosses: int) -> float:
    """Chance that a fair coin shows heads `at_least` times."""
    return sum(comb(tosses, heads) for heads in range(at_least, tosses + 1)) / (1 << tosses)


def _recall(pairs: Sequence[Pair]) -> dict[str, tuple[float, float, int]]:
    photos = Counter(pair.challenger.label or "" for pair in pairs)
    before = Counter(pair.champion.label for pair in pairs if pair.champion.right)
    after = Counter(pair.challenger.label for pair in pairs if pair.challenger.right)
    return {label: (before[label] / n, after[label] / n, n) for label, n in sorted(photos.items())}


def _reasons(
    photos: int,
    fixed: int,
    broken: int,
    placed: tuple[int, int],
    recall: Mapping[str, tuple[float, float, int]],
    max_recall_loss: float,
) -> list[str]:
    """In words, every condition that is not met."""
    if not photos:
        return ["there is no photo that neither model has learned from"]
    reasons = []
    if broken > fixed:
        reasons.append(f"it breaks {broken} of {photos} held-out photos and fixes only {fixed}")
    for label, (before, after, n) in recall.items():
        # Where a class has few of them, a single one is more than the share that may be lost, and says nothing yet:
        # most refreshes of a young collection would be refused for it. Who wants that says 0.
        may_be_lost = max(max_recall_loss * n, 1.0) if max_recall_loss else 0.0
        if round((before - after) * n) > may_be_lost + 1e-9:
            reasons.append(
                f"of {n} held-out photos of {label!r} it recognises {after:.1%}, the old model {before:.1%}: "
                f"more than the {max_recall_loss:.1%} that may be lost"
            )
    if placed[1] > placed[0] and _tail(placed[1], sum(placed)) < CHANCE:
        reasons.append(
            f"among the photos that people placed it breaks {placed[1]} and fixes only {placed[0]}, "
            "which is no accident"
        )
    return reasons
