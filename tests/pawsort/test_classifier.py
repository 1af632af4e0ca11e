import dataclasses

import numpy as np
import pytest

import tinymodel
from pawsort import errors
from pawsort.classifier import Classifier, open_classifier
from pawsort.decision import Look, Rule

LABELS = ("a", "b")
CLEAR, UNSURE = 200, 100  # a photo's brightness, which the engine below reads as its certainty


class Brightness:
    """An engine that answers from brightness alone, and remembers what it was asked."""

    name = "brightness"

    def __init__(self):
        self.asked = []

    def infer(self, pictures):
        brightness = pictures[:, 0, 0, 0]
        self.asked += brightness.tolist()
        logits = np.stack([np.where(brightness >= CLEAR, 20.0, 0.1), np.zeros(len(pictures))], axis=1)
        return logits.astype(np.float32), np.zeros((len(pictures), 4), np.float32)


@pytest.fixture
def model(trained):
    """A bundle of three views whose second look takes the first view too, and whose third takes another."""
    looks = (
        Look(views=(0,), temperature=1.0, threshold=0.9),
        Look(views=(0, 1), temperature=1.0, threshold=0.8),
        Look(views=(1, 2), temperature=1.0, threshold=0.7),
    )
    return dataclasses.replace(
        trained,
        labels=LABELS,
        views=("one", "two", "three"),
        feature_length=4,
        rule=Rule(labels=LABELS, looks=looks),
    )


def photos(*brightness):
    """Photos of three views each, (n, 3, 1, 1, 3)."""
    return np.array(brightness, dtype=np.uint8)[:, :, None, None, None].repeat(3, axis=-1)


def test_a_clear_photo_is_looked_at_once(model):
    engine = Brightness()
    decisions = Classifier(model, engine).classify(photos([CLEAR, 1, 2]))
    assert engine.asked == [CLEAR]
    assert (decisions[0].label, decisions[0].look) == ("a", 0)


def test_only_the_unsure_get_a_second_look(model):
    engine = Brightness()
    decisions = Classifier(model, engine).classify(
        photos([CLEAR, 1, 2], [UNSURE, CLEAR + 1, 3], [CLEAR + 2, 4, 5])
    )
    assert engine.asked == [CLEAR, UNSURE, CLEAR + 2, CLEAR + 1]
    assert [decision.look for decision in decisions] == [0, 1, 0]
    assert [decision.label for decision in decisions] == ["a", "a", "a"]


def test_each_view_is_inferred_at_most_once_over_all_looks(model):
    engine = Brightness()
    decision = Classifier(model, engine).classify(photos([10, 11, 12]))[0]
    assert engine.asked == [10, 11, 12]
    assert (decision.label, decision.look) == (None, 2)


def test_decisions_keep_the_order_of_the_photos_through_all_looks(model):
    mixed = photos([10, 11, 12], [CLEAR, 0, 0], [13, CLEAR, 0], [14, 15, CLEAR])
    decisions = Classifier(model, Brightness()).classify(mixed)
    assert [decision.look for decision in decisions] == [2, 0, 1, 2]
    assert [decision.label for decision in decisions] == [None, "a", "a", "a"]


def test_a_photo_is_decided_alike_alone_and_in_a_batch(trained):
    classifier = open_classifier(trained.path)
    pictures, _ = tinymodel.pictures(12)
    views = np.stack([pictures, pictures[:, :, ::-1]], axis=1)
    together = classifier.classify(views)
    alone = [classifier.classify(views[[number]])[0] for number in range(len(views))]
    assert [decision.label for decision in together] == [decision.label for decision in alone]
    assert {decision.look for decision in together} == {0, 1}


def test_no_photos_are_no_decisions(model):
    assert Classifier(model, Brightness()).classify(photos([1, 2, 3])[:0]) == []


def test_a_threshold_of_the_user_replaces_the_models_own(model):
    strict = Classifier(model, Brightness(), threshold=1.1)
    assert strict.threshold == 1.1
    assert strict.classify(photos([CLEAR, CLEAR, CLEAR]))[0].label is None
    assert Classifier(model, Brightness()).threshold == 0.7


def test_the_wrong_number_of_views_is_refused(model):
    with pytest.raises(ValueError, match="wants 3 views of a photo, got 2"):
        Classifier(model, Brightness()).classify(photos([1, 2, 3])[:, :2])


def answering(answer):
    class Engine(Brightness):
        def infer(self, pictures):
            return answer(*super().infer(pictures))

    return Engine()


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (lambda logits, features: (logits[:, :1], features), "answered with shapes"),
        (lambda logits, features: (logits, features[:, :1]), "answered with shapes"),
        (lambda logits, features: (logits * np.nan, features), "not finite"),
        (lambda logits, features: (logits, features + np.inf), "not finite"),
    ],
)
def test_a_model_that_answers_nonsense_does_not_begin_to_serve(model, answer, complaint):
    with pytest.raises(errors.ModelError, match=complaint):
        Classifier(model, answering(answer)).smoke_test()


def test_a_model_whose_engine_fails_on_its_first_picture_does_not_begin_to_serve(trained):
    # The graph was made for pictures of another size than the manifest says.
    classifier = open_classifier(trained.path)
    mistaken = dataclasses.replace(trained, size=trained.size // 2)
    with pytest.raises(errors.ModelError, match="does not answer"):
        Classifier(mistaken, classifier.engine).smoke_test()
