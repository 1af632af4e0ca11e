import numpy as np
import pytest

from pawsort.decision import Judgement, softmax
from trainer import calibrate, evaluate

RANDOM = np.random.default_rng(0)


def overconfident(count=4000, classes=3, heat=2.5):
    """Logits whose soft-max is right only at temperature `heat`, and the classes they stand for."""
    logits = RANDOM.normal(0, 2, (count, classes)).astype(np.float32)
    cumulated = np.cumsum(softmax(logits), axis=1)
    targets = (RANDOM.random((count, 1)) > cumulated).sum(axis=1).clip(max=classes - 1)
    return logits * heat, targets


def test_temperature_undoes_overconfidence():
    logits, targets = overconfident()
    found = calibrate.temperature(logits, targets)
    assert found == pytest.approx(2.5, rel=0.1)
    probabilities = softmax(logits / found)
    right = probabilities.argmax(axis=1) == targets
    assert calibrate.expected_calibration_error(probabilities.max(axis=1), right) < 0.02
    assert calibrate.expected_calibration_error(softmax(logits).max(axis=1), right) > 0.1


def test_temperature_stays_sane_without_a_mistake():
    logits = np.eye(3, dtype=np.float32)[[0, 1, 2]] * 8
    assert 0.1 <= calibrate.temperature(logits, np.array([0, 1, 2])) <= 10


def test_calibration_error_by_hand():
    confidence = np.array([0.9, 0.9, 0.9, 0.9, 0.5, 0.5])
    right = np.array([True, True, True, False, True, False])
    assert calibrate.expected_calibration_error(confidence, right, bins=10) == pytest.approx(4 / 6 * 0.15)
    assert calibrate.expected_calibration_error(np.array([]), np.array([], dtype=bool)) == 0


def test_strangers_are_unfamiliar_and_held_out_photos_are_not():
    centres = RANDOM.normal(0, 3, (3, 40))
    mixing = RANDOM.normal(0, 1, (40, 40))

    def photos(count):
        targets = RANDOM.integers(0, 3, count)
        return (centres[targets] + RANDOM.normal(0, 0.3, (count, 40)) @ mixing).astype(np.float32), targets

    features, targets = photos(600)
    held_out, _ = photos(200)
    familiar = calibrate.familiarity(features, targets, held_out, classes=3)
    strangers = RANDOM.normal(0, 3, (200, 40)).astype(np.float32) @ mixing.astype(np.float32)
    assert evaluate.auroc(familiar(photos(300)[0]), familiar(strangers)) > 0.99
    assert np.median(familiar(held_out)) > 0.98
    assert (familiar(held_out) > 0.5).mean() == pytest.approx(calibrate.FAMILIAR_SHARE, abs=0.01)


def test_familiarity_works_with_fewer_photos_than_dimensions():
    features = RANDOM.normal(0, 1, (12, 64)).astype(np.float32)
    familiar = calibrate.familiarity(features, np.arange(12) % 2, features[:4], classes=2)
    assert np.isfinite(familiar(features)).all()


def test_one_wrong_label_does_not_make_every_photo_doubtful():
    logits = np.full((300, 3), -4, dtype=np.float32)
    targets = RANDOM.integers(0, 3, 300)
    logits[np.arange(300), targets] = RANDOM.uniform(0, 6, 300)
    wrong = targets.copy()
    wrong[np.argmax(logits.max(axis=1))] += 1
    wrong %= 3
    assert calibrate.temperature(logits, wrong) < 1.5 * calibrate.temperature(logits, targets)


def test_threshold_reaches_its_target_and_sorts_as_many_as_it_can():
    confidence = np.concatenate([np.full(990, 0.999), np.linspace(0.4, 0.6, 100)]).astype(np.float32)
    right = np.concatenate([np.ones(990, dtype=bool), np.arange(100) % 2 == 0])
    chosen = calibrate.threshold(confidence, right, 0.995)
    assert chosen.precision >= 0.994
    assert 0.5 < chosen.value < 0.999
    assert chosen.coverage == pytest.approx(1000 / 1090, abs=0.01)


def test_higher_target_never_sorts_more():
    logits, targets = overconfident(heat=1.0)
    probabilities = softmax(logits)
    right = probabilities.argmax(axis=1) == targets
    shares = [
        calibrate.threshold(probabilities.max(axis=1), right, target).coverage for target in (0.8, 0.9, 0.97)
    ]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > shares[-1]


def test_threshold_does_not_trust_a_lucky_sample():
    confidence = np.full(100, 0.9, dtype=np.float32)
    chosen = calibrate.threshold(confidence, np.ones(100, dtype=bool), 0.995)
    assert chosen.coverage == 0


def test_many_mistakes_veto_what_confidence_promises():
    confidence = np.linspace(0.99, 1, 400).astype(np.float32)
    right = np.ones(400, dtype=bool)
    few, many = right.copy(), right.copy()
    few[[10, 20]] = False
    many[:40] = False
    assert calibrate.threshold(confidence, few, 0.995).coverage == 1
    chosen = calibrate.threshold(confidence, many, 0.995)
    assert chosen.coverage < 0.95
    assert chosen.precision > 0.985


def test_first_look_may_end_what_the_last_would_have_decided_too():
    def judgement(confidence, probabilities):
        return Judgement(
            probabilities=probabilities, familiarity=np.ones(500, np.float32), confidence=np.array(confidence)
        )

    first = np.linspace(0.5, 1, 500)
    same = np.tile([0.9, 0.1], (500, 1))
    other = same.copy()
    other[:300] = other[:300, ::-1]
    sure = judgement(np.full(500, 0.99), same)
    assert calibrate.early_threshold(judgement(first, same), sure, 0.8) == pytest.approx(0.9)
    assert calibrate.early_threshold(judgement(first, other), sure, 0.3) == pytest.approx(
        first[300], abs=0.01
    )


def test_rule_asks_the_first_look_for_more_than_the_last():
    logits, targets = overconfident(400)
    features = np.eye(3)[targets] * 5 + RANDOM.normal(0, 1, (400, 3))
    answers = calibrate.Answers(
        logits=np.repeat(logits[:, None], 2, axis=1).astype(np.float32),
        features=np.repeat(features[:, None], 2, axis=1).astype(np.float32),
    )
    rule, told = calibrate.rule(("a", "b", "c"), ((0,), (0, 1)), answers, targets, answers, targets, 0.9)
    first, last = rule.looks
    assert first.threshold > last.threshold
    assert told["target_precision"] == 0.9


def test_auroc_by_hand():
    assert evaluate.auroc(np.array([0.9, 0.8]), np.array([0.1, 0.2])) == 1
    assert evaluate.auroc(np.array([0.5]), np.array([0.5])) == 0.5
    assert evaluate.auroc(np.array([0.3, 0.6]), np.array([0.5, 0.1])) == 0.75
    assert evaluate.auroc(np.array([0.3]), np.array([])) is None
