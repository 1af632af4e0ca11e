"""Pictures -> logits and features, by one of two engines behind one small protocol.

OpenVINO runs the serving graph and is the default. PyTorch runs the network's own weights; it is there for machines
without OpenVINO and to check the graph against. Both are imported only when they are asked for.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pawsort import errors
from pawsort.bundle import Bundle
from pawsort.decision import Floats

Kind = Literal["auto", "openvino", "torch"]


class Engine(Protocol):
    """A model loaded and ready to infer."""

    name: str

    def infer(self, pictures: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """Logits (n, K) and features (n, D), float32, of pictures (n, S, S, 3) uint8, RGB."""
        ...


def open_engine(
    kind: Kind, bundle: Bundle, *, threads: int | None = None, cache: Path | None = None
) -> Engine:
    """Load `bundle` into an engine. "auto" takes OpenVINO when it is installed, else PyTorch.

    `threads`: how many threads inference may use (default: the engine's own choice).
    `cache`: a folder where OpenVINO may keep the compiled model.
    Raises ModelError when the engine is not installed or cannot load the model.
    """
    if kind == "auto":
        kind = "openvino" if importlib.util.find_spec("openvino") else "torch"
    if kind == "openvino":
        return OpenVinoEngine(bundle, threads=threads, cache=cache)
    return TorchEngine(bundle, threads=threads)


class OpenVinoEngine:
    """The serving graph on OpenVINO's CPU plugin."""

    name = "openvino"

    def __init__(self, bundle: Bundle, *, threads: int | None = None, cache: Path | None = None) -> None:
        # Importing OpenVINO readies this package to report usage over the network, under a number that it leaves in the
        # home folder. A daemon that sees people's photos talks to nobody. OpenVINO does without where it is missing.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
        try:
            import openvino
        except ImportError as error:
            message = (
                "engine openvino: OpenVINO is not installed; `pip install openvino`, or set engine: torch"
            )
            raise errors.ModelError(message) from error

        # OpenVINO would hand what is no XML, of anybody's making, to its readers for TensorFlow, ONNX and others.
        with bundle.graph.open("rb") as stream:
            if stream.read(5) != b"<?xml":
                raise errors.ModelError(f"{bundle.graph}: is no OpenVINO graph; make the model again")

        # Not pinned to cores: the decoders are at work on the same ones, and a pinned thread cannot step aside.
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "ENABLE_CPU_PINNING": False,
        }
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        if cache is not None:
            settings["CACHE_DIR"] = str(cache)
        try:
            self._compiled = openvino.Core().compile_model(str(bundle.graph), "CPU", settings)
        except RuntimeError as error:
            message = f"{bundle.graph}: OpenVINO cannot load it: {error}"
            raise errors.ModelError(message) from error
        self._request = self._compiled.create_infer_request()

    def infer(self, pictures: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """See Engine."""
        self._request.infer([pictures], share_inputs=True)
        # Copies, because the request's own memory is overwritten by the next call.
        return (
            np.array(self._request.get_tensor("logits").data, dtype=np.float32),
            np.array(self._request.get_tensor("features").data, dtype=np.float32),
        )


class TorchEngine:
    """The network's own weights on PyTorch, in bfloat16 where the CPU is fast at it."""

    name = "torch"

    def __init__(self, bundle: Bundle, *, threads: int | None = None) -> None:
        try:
            import torch

            from pawsort import network
        except ImportError as error:
            message = "engine torch: PyTorch is not installed; `pip install 'pawsort[train]'`, or set engine: openvino"
            raise errors.ModelError(message) from error

        if threads is not None:
            torch.set_num_threads(threads)
        self._torch = torch
        self._serving = network.Serving(network.load(bundle.weights, classes=len(bundle.labels)))
        self._serving.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._bfloat16 = network.bfloat16_is_fast()

    def infer(self, pictures: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """See Engine."""
        torch = self._torch
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._bfloat16):
            logits, features = self._serving(torch.from_numpy(np.ascontiguousarray(pictures)))
        return logits.float().numpy(), features.float().numpy()
