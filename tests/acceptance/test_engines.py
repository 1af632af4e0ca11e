"""The two engines are one model: OpenVINO's graph and PyTorch's weights give the same labels."""

import cv2
import numpy as np
import pytest

import drawn
from pawsort import bundle, image, registry
from pawsort.classifier import Classifier
from pawsort.engine import open_engine

MOST_DIFFERENT = 0.005  # share of pictures on which the engines may disagree


def both_engines(folder):
    """OpenVINO's classifier and PyTorch's, of the model in this folder."""
    model = bundle.load(folder)
    return [Classifier(model, open_engine(kind, model)) for kind in ("openvino", "torch")]


@pytest.fixture(scope="module")
def classifiers():
    return both_engines(registry.shipped())


def share_different(classifiers, pictures):
    """Share of pictures (n, V, S, S, 3) on which the likeliest class differs."""
    answers = []
    for classifier in classifiers:
        parts = np.array_split(pictures, max(len(pictures) // 16, 1))
        answers.append([decision.best for part in parts for decision in classifier.classify(part)])
    return np.mean([one != other for one, other in zip(*answers, strict=True)])


def views(model, pixels):
    return np.stack([image.view(pixels, name, model.size) for name in model.views])


def test_the_engines_agree_on_200_drawn_pictures(tiny_model):
    classifiers = both_engines(tiny_model)
    model = classifiers[0].bundle
    drawings = [drawn.draw(drawn.LABELS[seed % 3], seed, (110, 96)) for seed in range(1000, 1200)]
    assert (
        share_different(classifiers, np.stack([views(model, drawing) for drawing in drawings]))
        <= MOST_DIFFERENT
    )


def test_neither_engine_sorts_drawings_with_a_model_that_knows_photos(classifiers):
    model = classifiers[0].bundle
    pictures = np.stack([views(model, drawn.draw("stars", seed, (280, 240))) for seed in range(20)])
    for classifier in classifiers:
        assert [decision.label for decision in classifier.classify(pictures)] == [None] * len(pictures)


@pytest.mark.real
def test_the_engines_agree_on_the_shared_photos(classifiers, shared):
    model = classifiers[0].bundle
    photos = sorted((shared / "data" / "animals").glob("*/*"))[::4]
    pictures = []
    for photo in photos:
        decoded = image.decode(photo.read_bytes(), image.Limits(), model.size)
        pictures.append(views(model, decoded.pixels))
    different = share_different(classifiers, np.stack(pictures))
    print(f"engines differ on {different:.2%} of {len(photos)} photos")
    assert different <= MOST_DIFFERENT


def test_the_engines_see_the_same_colours(classifiers):
    """Were red and blue swapped in one of them, its answer would be nearer to the other's about the swapped picture."""
    drawing = drawn.photo(3, 320, 240)
    model = classifiers[0].bundle
    right, swapped = (views(model, pixels) for pixels in (drawing, cv2.cvtColor(drawing, cv2.COLOR_RGB2BGR)))
    openvino, torch = (classifier.engine.infer for classifier in classifiers)
    same = np.abs(openvino(right)[1] - torch(right)[1]).mean()
    other = np.abs(openvino(right)[1] - torch(swapped)[1]).mean()
    assert same < other / 2
