import subprocess
import sys

import numpy as np
import pytest
import torch

import drawn
from pawsort import network
from trainer import export


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return network.build(4).eval()


@pytest.fixture(scope="module")
def graph(model):
    return export.float_graph(model, 48)


PICTURES = np.stack([drawn.draw(drawn.LABELS[seed % 3], seed, 48) for seed in range(24)])


def test_float_graph_answers_as_the_network_does(model, graph):
    logits, features = export.answer(export.compile_graph(graph, exact=True), PICTURES)
    with torch.inference_mode():
        expected = network.Serving(model)(torch.from_numpy(PICTURES))
    np.testing.assert_allclose(logits, expected[0].numpy(), atol=1e-2)
    np.testing.assert_allclose(features, expected[1].numpy(), atol=2e-2)


def test_graph_takes_bytes_and_any_number_of_them(graph):
    assert [str(tensor.get_element_type().to_dtype()) for tensor in graph.inputs] == ["uint8"]
    compiled = export.compile_graph(graph)
    for count in (1, 3):
        logits, features = export.answer(compiled, PICTURES[:count])
        assert (logits.shape, features.shape) == ((count, 4), (count, network.FEATURES))


def test_quantised_graph_is_int8_and_close(model, graph):
    small = export.quantised(graph, PICTURES)
    assert any(
        op.get_type_name() == "FakeQuantize" or "i8" in str(op.get_element_type())
        for op in small.get_ops()
        if op.get_output_size()
    )
    expected = export.answer(export.compile_graph(graph, exact=True), PICTURES)[1]
    found = export.answer(export.compile_graph(small), PICTURES)[1]
    assert np.corrcoef(expected.ravel(), found.ravel())[0, 1] > 0.98


def logits(*decided):
    return np.eye(3, dtype=np.float32)[list(decided)]


def test_check_counts_moved_labels_and_lost_photos():
    targets = np.array([0, 1, 2, 0])
    everything = np.ones(4, dtype=bool)
    result = export.check(logits(0, 1, 2, 1), logits(0, 1, 1, 0), targets, everything)
    assert (result.labels_moved, result.accuracy_lost) == (0.5, 0.0)
    assert not result.passed
    assert export.check(logits(0, 1, 2, 0), logits(0, 1, 2, 0), targets, everything).passed


def test_check_measures_accuracy_on_held_out_photos_alone():
    targets = np.array([0, 1, 2, 0])
    held_out = np.array([False, False, True, True])
    assert export.check(logits(0, 1, 2, 0), logits(1, 1, 2, 1), targets, held_out).accuracy_lost == 0.5


@pytest.mark.parametrize(("moved", "passes"), [(5, True), (6, False)])
def test_half_a_percent_of_moved_labels_is_the_limit(moved, passes):
    before, after = logits(*[0] * 1000), logits(*[1] * moved, *[0] * (1000 - moved))
    targets = np.array([2] * 1000)  # both are wrong, so that no accuracy is lost
    assert export.check(before, after, targets, np.ones(1000, dtype=bool)).passed is passes


def test_nothing_is_reported_over_the_network():
    # In a process of its own: whoever imported OpenVINO here before has its reporting package loaded.
    check = "import sys, trainer.export, nncf; assert sys.modules['openvino_telemetry'] is None"
    subprocess.run([sys.executable, "-c", check], check=True)
