import numpy as np
import pytest

from pawsort.decision import Familiarity, Judgement, Look, Rule, softmax

LOOK = Look(views=(0,), temperature=1.0, threshold=0.9)


def floats(*values):
    """An array of the values; of the only one, when there is one."""
    values = values[0] if len(values) == 1 else values
    return np.array(values, dtype=np.float32)


@pytest.fixture
def familiarity():
    """Two classes at (0, 0) and (10, 0); the second feature varies twice as much, so it counts half."""
    whitening = floats([1.0, 0.0], [0.0, 0.5])
    return Familiarity(means=floats([0, 0], [10, 0]), whitening=whitening, centre=4.0, scale=0.5)


def rule(familiarity=None):
    return Rule(labels=("a", "b"), looks=(LOOK,), familiarity=familiarity)


def judged(*, probabilities, familiarity=1.0):
    probabilities = floats(probabilities)
    return Judgement(
        probabilities=probabilities,
        familiarity=floats([familiarity]),
        confidence=probabilities.max(axis=1) * np.float32(familiarity),
    )


def test_softmax_of_hand_computed_logits():
    # e^ln3 / (e^ln3 + e^0) = 3/4
    assert softmax(floats([np.log(3), 0.0])) == pytest.approx(floats([0.75, 0.25]))


def test_softmax_of_huge_logits_does_not_overflow():
    with np.errstate(over="raise", invalid="raise"):
        assert softmax(floats([10_000.0, 9_000.0])) == pytest.approx(floats([1.0, 0.0]))


def test_temperature_divides_the_logits():
    look = Look(views=(0,), temperature=2.0, threshold=0.9)
    judgement = rule().judge(look, floats([[[2 * np.log(3), 0.0]]]), np.zeros((1, 1, 2), np.float32))
    assert judgement.probabilities == pytest.approx(floats([0.75, 0.25]).reshape(1, 2))


def test_views_are_averaged_as_logits_not_as_probabilities():
    logits = floats([[[np.log(9), 0.0], [0.0, 0.0]]])
    judgement = rule().judge(LOOK, logits, np.zeros((1, 2, 2), np.float32))
    assert judgement.probabilities[0, 0] == pytest.approx(0.75)


def test_distance_is_mahalanobis_to_the_nearest_class(familiarity):
    features = floats([3, 8], [10, 0], [13, 0])
    # (3, 4) whitened from the first class: 5; on the second; 3 from the second
    assert familiarity.distance(features) == pytest.approx(floats(5, 0, 3), abs=1e-3)


def test_distance_equals_the_textbook_form():
    random = np.random.default_rng(0)
    samples = random.normal(size=(400, 5)) @ random.normal(size=(5, 5))
    precision = np.linalg.inv(np.cov(samples.T))
    whitening = np.linalg.cholesky(precision)
    mean, x = samples.mean(axis=0), samples[:7]
    ours = Familiarity(
        means=(mean @ whitening)[None].astype(np.float32),
        whitening=whitening.astype(np.float32),
        centre=1.0,
        scale=1.0,
    )
    textbook = np.sqrt(np.einsum("ni,ij,nj->n", x - mean, precision, x - mean))
    assert ours.distance(x.astype(np.float32)) == pytest.approx(textbook, rel=1e-3)


def test_familiarity_is_one_half_at_its_centre_and_falls_with_distance(familiarity):
    # distances 4 (the centre), 4.5 (one scale further), 3.5 (one scale nearer)
    found = familiarity(floats([0, 8], [0, 9], [0, 7]))
    assert found == pytest.approx(floats(0.5, 1 / (1 + np.e), np.e / (1 + np.e)), rel=1e-4)


def test_a_feature_light_years_away_is_not_familiar_and_does_not_overflow(familiarity):
    with np.errstate(over="raise", invalid="raise"):
        assert familiarity(floats([[1e9, 0]]))[0] == pytest.approx(0.0)


def test_confidence_is_probability_times_familiarity(familiarity):
    judgement = rule(familiarity).judge(LOOK, floats([[[np.log(3), 0.0]]]), floats([[[0, 8]]]))
    assert judgement.confidence[0] == pytest.approx(0.75 * 0.5, rel=1e-4)


def test_without_statistics_everything_is_familiar():
    judgement = rule().judge(LOOK, floats([[[0.0, 5.0]]]), floats([[[1e6, 1e6]]]))
    assert judgement.familiarity.tolist() == [1.0]


def test_at_the_threshold_the_label_stands_and_below_it_does_not():
    at, below = (
        rule().decisions(0, judged(probabilities=[[0.75, 0.25]]), threshold)[0] for threshold in (0.75, 0.76)
    )
    assert (at.label, at.best, at.reason) == ("a", "a", None)
    assert (below.label, below.best) == (None, "a")


def test_a_decision_carries_everything_that_is_recorded():
    decision = rule().decisions(3, judged(probabilities=[[0.25, 0.75]], familiarity=0.5), 0.3)[0]
    assert decision.label == "b"
    assert decision.confidence == pytest.approx(0.375)
    assert decision.familiarity == pytest.approx(0.5)
    assert decision.probabilities == pytest.approx((0.25, 0.75))
    assert (decision.threshold, decision.look) == (0.3, 3)


def test_the_reason_tells_a_strange_photo_from_a_close_call():
    strange = rule().decisions(0, judged(probabilities=[[0.99, 0.01]], familiarity=0.1), 0.9)[0]
    close = rule().decisions(0, judged(probabilities=[[0.55, 0.45]]), 0.9)[0]
    assert strange.reason.startswith("unlike the photos that the model knows")
    assert close.reason.startswith("unsure between classes")
