from pathlib import Path

import pytest
from scipy import stats

from pawsort.decision import Decision
from trainer import gate
from trainer.dataset import Example, Origin, Side
from trainer.evaluate import Judged

LABELS = ("left", "right")


def judged(number, label, best):
    decision = Decision(
        label=best,
        best=best,
        confidence=0.9,
        familiarity=1.0,
        probabilities=tuple(0.9 if best == name else 0.1 for name in LABELS),
        threshold=0.5,
        look=0,
    )
    return Judged(path=Path(f"{number}.jpg"), label=label, sha256=f"{number:064x}", decision=decision)


def hold(photos, **fields):
    """The gate's verdict on photos given as (label, origin, champion right?, challenger right?)."""
    wrong = {"left": "right", "right": "left"}
    old, new, examples = [], [], []
    for number, (label, origin, old_right, new_right) in enumerate(photos):
        old.append(judged(number, label, label if old_right else wrong[label]))
        new.append(judged(number, label, label if new_right else wrong[label]))
        examples.append(
            Example(
                path=old[-1].path, label=label, origin=origin, sha256=old[-1].sha256, group="", side=Side.TEST
            )
        )
    return gate.hold("old", old, new, examples, **({"max_recall_loss": 0.02} | fields))


def photos(label="left", origin=Origin.PLACED, *, both=0, fixed=0, broken=0, neither=0):
    outcomes = [(True, True)] * both + [(False, True)] * fixed + [(True, False)] * broken
    return [(label, origin, *outcome) for outcome in outcomes + [(False, False)] * neither]


def test_a_better_model_passes_and_the_counts_are_paired():
    verdict = hold(photos(both=10, fixed=4, broken=1, neither=2) + photos("right", both=5))
    assert verdict.passed
    assert verdict.serves
    told = verdict.document()
    assert (told["n"], told["fixed"], told["broken"]) == (22, 4, 1)
    assert (told["both_right"], told["both_wrong"]) == (15, 2)
    assert told["accuracy"] == {"champion": 16 / 22, "challenger": 19 / 22}
    assert told["recall"]["left"] == {"champion": 11 / 17, "challenger": 14 / 17, "n": 17}
    assert [pair.challenger.right for pair in verdict.fixed] == [True] * 4
    assert [pair.champion.right for pair in verdict.broken] == [True]


def test_an_equal_model_passes():
    assert hold(photos(both=10, fixed=2, broken=2)).passed


def test_a_model_that_is_worse_overall_is_refused_with_the_counts():
    verdict = hold(photos(both=100, fixed=1, broken=2), max_recall_loss=1.0)
    assert not verdict.serves
    assert verdict.reasons == ("it breaks 2 of 103 held-out photos and fixes only 1",)


def test_a_model_that_is_better_overall_and_forgets_a_class_is_refused():
    both = photos(both=80, fixed=10) + photos("right", both=47, broken=3)
    verdict = hold(both, max_recall_loss=0.05)
    assert len(verdict.reasons) == 1
    assert "of 50 held-out photos of 'right' it recognises 94.0%, the old model 100.0%" in verdict.reasons[0]
    assert hold(both, max_recall_loss=0.06).passed


def test_one_photo_of_a_small_class_is_no_proof_and_two_are():
    better = photos(both=5, fixed=4)
    assert hold(better + photos("right", both=9, broken=1)).passed
    refused = hold(better + photos("right", both=8, broken=2))
    assert "of 10 held-out photos of 'right' it recognises 80.0%" in refused.reasons[0]
    assert not hold(better + photos("right", both=9, broken=1), max_recall_loss=0.0).passed


def test_fixing_what_people_corrected_does_not_pay_for_breaking_what_they_placed():
    """Corrected photos are there because the old model had them wrong: any newcomer looks good on them."""
    picked = photos(origin=Origin.CORRECTED, fixed=30)
    verdict = hold(picked + photos(both=200, broken=5))
    assert verdict.reasons == (
        "among the photos that people placed it breaks 5 and fixes only 0, which is no accident",
    )
    assert hold(picked + photos(both=200, broken=4)).passed  # 1 in 16: that may be an accident


def test_with_nothing_to_test_on_the_old_model_stays():
    assert hold([]).reasons == ("there is no photo that neither model has learned from",)


def test_force_lets_a_worse_model_serve_and_is_recorded():
    worse = photos(both=10, broken=3)
    verdict = hold(worse, forced=True)
    assert (verdict.passed, verdict.serves) == (False, True)
    assert verdict.document()["forced"] is True
    assert hold(worse).document()["forced"] is False


def test_force_that_was_not_needed_is_not_recorded():
    assert hold(photos(both=10, fixed=1), forced=True).document()["forced"] is False


def test_photos_that_only_one_of_the_two_could_be_asked_about_count_for_neither():
    old = [judged(0, "left", "left"), judged(1, "left", "left")]
    new = [judged(1, "left", "left"), judged(2, "left", "right")]
    examples = [
        Example(path=p.path, label="left", origin=Origin.PLACED, sha256=p.sha256, group="", side=Side.TEST)
        for p in (*old, new[1])
    ]
    assert gate.hold("old", old, new, examples, max_recall_loss=0.0).photos == 1


def test_a_class_that_the_old_model_did_not_know_counts_as_wrong_for_it():
    old = judged(0, "left", "right")
    new = judged(0, "left", "left")
    example = Example(
        path=old.path, label="left", origin=Origin.PLACED, sha256=old.sha256, group="", side=Side.TEST
    )
    verdict = gate.hold("old", [old], [new], [example], max_recall_loss=0.0)
    assert verdict.recall == {"left": (0.0, 1.0, 1)}


@pytest.mark.parametrize(
    ("fixed", "broken"), [(0, 0), (1, 0), (5, 5), (12, 3), (3, 12), (700, 640), (2000, 1500)]
)
def test_p_values_are_those_of_the_exact_binomial_test(fixed, broken):
    expected = stats.binomtest(fixed, fixed + broken, 0.5).pvalue if fixed + broken else 1.0
    assert gate.mcnemar(fixed, broken) == pytest.approx(expected, rel=1e-9)
