"""A small real model for tests: ResNet-18 on 64 pixel pictures of drawn shapes, which tells them apart fairly well."""

from pathlib import Path

import numpy as np
import openvino
import pytest
import torch

import drawn
from pawsort import bundle, network
from pawsort.bundle import Bundle
from pawsort.decision import Familiarity, Look, Rule

SIZE = 64
VIEWS = ("centre", "whole")


def shapes(temporary: pytest.TempPathFactory) -> Bundle:
    """One such model for all tests of a run. Not to be changed."""
    if not _shapes:
        _shapes.append(make(temporary.mktemp("models") / "shapes-1"))
    return _shapes[0]


_shapes: list[Bundle] = []


def make(folder: Path, *, threshold: float = 0.5, seed: int = 0) -> Bundle:
    """A sealed bundle in `folder`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on busy cores, waiting for each other costs small tensors more than it gains
    try:
        return _make(folder, threshold, seed)
    finally:
        torch.set_num_threads(threads)


def _make(folder: Path, threshold: float, seed: int) -> Bundle:
    torch.manual_seed(seed)
    net = network.build(len(drawn.LABELS))
    _fit_head(net, count=300)
    folder.mkdir(parents=True)
    return seal(folder, net.eval(), threshold)


def seal(folder: Path, net, threshold: float) -> Bundle:
    """Write everything that belongs to a bundle."""
    network.save(net, folder / bundle.WEIGHTS)
    graph = openvino.convert_model(
        network.Serving(net).eval(),
        example_input=torch.zeros(1, SIZE, SIZE, 3, dtype=torch.uint8),
        input=[([-1, SIZE, SIZE, 3], np.uint8)],
    )
    graph.outputs[0].tensor.set_names({"logits"})
    graph.outputs[1].tensor.set_names({"features"})
    openvino.save_model(graph, folder / bundle.GRAPH, compress_to_fp16=True)
    familiarity = Familiarity(
        means=np.zeros((len(drawn.LABELS), 8), np.float32),
        whitening=np.eye(network.FEATURES, 8, dtype=np.float32),
        centre=1e6,  # everything is familiar
        scale=1.0,
    )
    bundle.write_statistics(folder, familiarity)
    rule = Rule(
        labels=drawn.LABELS,
        looks=(
            Look(views=(0,), temperature=1.0, threshold=0.9),
            Look(views=(0, 1), temperature=1.0, threshold=threshold),
        ),
        familiarity=familiarity,
    )
    return bundle.seal(folder, manifest(folder.name, rule))


def manifest(name: str, rule: Rule) -> dict[str, object]:
    """What bundle.json says of a model made here."""
    return {
        "name": name,
        "labels": list(rule.labels),
        "input": {"size": SIZE, "views": list(VIEWS)},
        "feature_length": network.FEATURES,
        "decision": bundle.rule_fields(rule),
        "graph": {"precision": "float"},
        "metrics": {"test": {"accuracy": 0.9}},
        "created": "2026-01-01T00:00:00+00:00",
        "parent": None,
    }


def pictures(count: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Drawn pictures (n, S, S, 3) uint8 and the index (n,) of each one's label."""
    labels = np.arange(count) % len(drawn.LABELS)
    drawings = [drawn.draw(drawn.LABELS[label], seed + number, SIZE) for number, label in enumerate(labels)]
    return np.stack(drawings), labels


def _fit_head(net, count: int) -> None:
    """Teach the last layer alone, in closed form: random convolutions see enough to tell drawn shapes apart."""
    data, labels = pictures(count, seed=10_000)
    serving = network.Serving(net)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # statistics of the one pass below
    with torch.no_grad():
        serving.train()(torch.from_numpy(data))
        _, features = serving.eval()(torch.from_numpy(data))
        features = torch.cat([features, torch.ones(count, 1)], dim=1).double()
        wanted = 10 * torch.nn.functional.one_hot(torch.from_numpy(labels)).double()
        ridge = 100 * torch.eye(features.shape[1], dtype=torch.float64)
        head = torch.linalg.solve(features.T @ features + ridge, features.T @ wanted)
        net.fc.weight.copy_(head[:-1].T)
        net.fc.bias.copy_(head[-1])
