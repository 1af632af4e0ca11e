"""The network -> the graph that serves: OpenVINO, int8 where that can be trusted, float where it cannot."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pawsort import errors, network
from pawsort.decision import Floats

# Both OpenVINO's converter and NNCF report usage over the network through this package, and do without it where it
# is not installed. Whoever trains on their own photos did not ask for that.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino  # noqa: E402

# OpenVINO's graphs, compiled or not: the names of their types come and go with its versions.
Graph = Any
Pixels = NDArray[np.uint8]
Classes = NDArray[np.int64]

# An int8 graph that loses more than this, or decides more photos differently, is not shipped.
MOST_ACCURACY_LOST = 0.003  # share of photos
MOST_LABELS_MOVED = 0.005  # share of photos
CALIBRATION_PICTURES = 300
_OUTPUTS = ("logits", "features")


@dataclass(frozen=True, kw_only=True)
class Check:
    """A quantised graph held against the float one, photo by photo."""

    photos: int
    labels_moved: float  # share of the photos that the two decide differently
    accuracy_lost: (
        float  # share of the photos with a known label; below 0 where the quantised graph is better
    )
    labelled: int  # photos that `accuracy_lost` was measured on

    @property
    def passed(self) -> bool:
        """Whether the quantised graph may serve."""
        return self.labels_moved <= MOST_LABELS_MOVED and self.accuracy_lost <= MOST_ACCURACY_LOST


def float_graph(model: network.Network, size: int) -> Graph:
    """The serving graph: input (n, size, size, 3) uint8 RGB, outputs "logits" (n, K) and "features" (n, 512).

    Raises ModelError when it does not answer as `model` does.
    """
    serving = network.Serving(model.cpu()).eval()
    example = torch.zeros((1, size, size, 3), dtype=torch.uint8)
    graph = openvino.convert_model(serving, example_input=example, input=[("pictures", [-1, size, size, 3])])
    for output, name in zip(graph.outputs, _OUTPUTS, strict=True):
        output.get_tensor().set_names({name})
    graph.inputs[0].get_tensor().set_names({"pictures"})

    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = serving(torch.from_numpy(noise))[0].numpy()
    found, _ = answer(compile_graph(graph, exact=True), noise)
    if not np.allclose(found, expected, rtol=1e-2, atol=1e-2):
        worst = float(np.abs(found - expected).max())
        raise errors.ModelError(
            f"the converted graph answers differently from the network, by up to {worst:.3f}"
        )
    return graph


def quantised(graph: Graph, pictures: Iterable[Pixels]) -> Graph:
    """An int8 version of `graph`, calibrated on `pictures`, each (size, size, 3) uint8 (NNCF post-training)."""
    import nncf

    logging.getLogger("nncf").setLevel(logging.WARNING)
    batches = [picture[None] for picture in pictures]
    # NNCF draws progress bars on stdout, which belongs to the result.
    with contextlib.redirect_stdout(io.StringIO()):
        return nncf.quantize(graph, nncf.Dataset(batches), subset_size=len(batches))


def compile_graph(graph: Graph, *, exact: bool = False) -> Graph:
    """`graph` ready to run on this CPU; `exact` keeps float arithmetic at float32 for comparisons."""
    settings = {"PERFORMANCE_HINT": "LATENCY"}
    if exact:
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    return openvino.Core().compile_model(graph, "CPU", settings)


def answer(compiled: Graph, pictures: Pixels) -> tuple[Floats, Floats]:
    """Logits (n, K) and features (n, 512) of pictures (n, size, size, 3) uint8."""
    results = compiled(pictures)
    return np.array(results["logits"], np.float32), np.array(results["features"], np.float32)


def check(reference: Floats, found: Floats, targets: Classes, labelled: NDArray[np.bool_]) -> Check:
    """Hold the logits (n, K) of a quantised graph against the float graph's.

    `labelled` marks the photos that were not learned from, whose accuracy means something.
    """
    expected, decided = reference.argmax(axis=1), found.argmax(axis=1)
    lost = (expected == targets)[labelled].mean() - (decided == targets)[labelled].mean()
    return Check(
        photos=len(expected),
        labels_moved=float((expected != decided).mean()),
        accuracy_lost=float(lost),
        labelled=int(labelled.sum()),
    )


def save_graph(graph: Graph, file: Path) -> None:
    """Write `graph` as `file` (.xml) and its weights beside it (.bin), float weights as float16."""
    openvino.save_model(graph, str(file), compress_to_fp16=True)
