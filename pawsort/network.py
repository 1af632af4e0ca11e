"""ResNet-18 with K outputs. The only module that imports torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from pawsort import errors

# Mean and standard deviation of ImageNet's RGB channels, 0..1, which torchvision's weights were trained with.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
FEATURES = 512  # length of ResNet-18's pooled features


def _import_torchvision() -> None:
    """Import torchvision, also where its compiled operators cannot load.

    A torchvision built for another PyTorch (CUDA beside a CPU build) has no compiled operators, and then its Python
    files fail at import, because they register fakes for detection operators that nobody defined: "operator
    torchvision::nms does not exist". Models and transforms do not need them. So where, and only where, that happens,
    the schemas are defined and the import is tried again.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        global _library  # noqa: PLW0603  the definitions live as long as this object
        _library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            schema = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            _library.define(schema)  # type: ignore[no-untyped-call]
        import torchvision  # noqa: F401


_library: torch.library.Library | None = None
_import_torchvision()

from torchvision.models import ResNet, ResNet18_Weights, resnet18  # noqa: E402  after the guard

Network = ResNet  # the type, for those who must not import torchvision

if TYPE_CHECKING:
    from collections.abc import Mapping

    Weights = Mapping[str, torch.Tensor]


class Serving(nn.Module):
    """The network as it serves: a picture goes in as it was decoded, logits and features come out.

    Input (n, S, S, 3) uint8 RGB; outputs logits (n, K) and features (n, 512). Mean and scale are part of the graph,
    so that nobody can forget them.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, network: ResNet) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1) * 255)
        self.register_buffer("scale", 1 / (torch.tensor(STD).view(1, 3, 1, 1) * 255))

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and features of uint8 pictures."""
        x = (pictures.permute(0, 3, 1, 2).float() - self.mean) * self.scale
        features = pooled_features(self.network, x)
        return self.network.fc(features), features


def pooled_features(network: ResNet, x: torch.Tensor) -> torch.Tensor:
    """Features (n, 512) before the last layer, of normalised pictures (n, 3, S, S)."""
    x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
    x = network.layer4(network.layer3(network.layer2(network.layer1(x))))
    features: torch.Tensor = torch.flatten(network.avgpool(x), 1)
    return features


def build(classes: int, backbone: Weights | None = None) -> ResNet:
    """ResNet-18 with a new head for `classes`, the rest from `backbone` (torchvision's keys) or random.

    A head in `backbone` is left out. Raises ModelError when keys or shapes are not ResNet-18's.
    """
    network = resnet18(weights=None, num_classes=classes)
    if backbone is None:
        return network
    body = {key: value.float() for key, value in backbone.items() if not key.startswith("fc.")}
    try:
        missing, unexpected = network.load_state_dict(body, strict=False)
    except RuntimeError as error:
        message = f"these weights are not those of a ResNet-18: {error}"
        raise errors.ModelError(message) from error
    # Running statistics count how often they were updated; a backbone may leave that out, nothing depends on it.
    missing = [
        key for key in missing if not key.startswith("fc.") and not key.endswith("num_batches_tracked")
    ]
    if missing or unexpected:
        message = (
            f"these weights are not those of a ResNet-18: missing {missing[:3]}, unexpected {unexpected[:3]}"
        )
        raise errors.ModelError(message)
    return network


def imagenet_weights() -> Weights:
    """torchvision's ImageNet weights, downloaded on first use. Raises ModelError when they cannot be had."""
    try:
        weights: Weights = ResNet18_Weights.IMAGENET1K_V1.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        message = (
            f"the ImageNet weights cannot be downloaded from {ResNet18_Weights.IMAGENET1K_V1.url} ({error}); "
            "connect to the network, or give a file of ResNet-18 weights: --init PATH"
        )
        raise errors.ModelError(message) from error
    return weights


def read_weights(path: Path) -> Weights:
    """Weights from a .safetensors file, or from a .pth file read without running code from it. Raises ModelError."""
    try:
        if path.suffix == ".safetensors":
            weights: Weights = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        message = f"{path}: no such file of weights"
        raise errors.ModelError(message) from None
    except (
        Exception
    ) as error:  # torch.load raises whatever the unpickler raises; each means the file is no good
        message = f"{path}: cannot be read as weights: {error}"
        raise errors.ModelError(message) from error
    if not isinstance(weights, dict) or not all(
        isinstance(value, torch.Tensor) for value in weights.values()
    ):
        message = f"{path}: holds no weights (wanted names and tensors)"
        raise errors.ModelError(message)
    return weights


def save(network: ResNet, path: Path) -> None:
    """Write all weights to a safetensors file, as float16 where that loses nothing that matters.

    Batch norm's statistics stay float32: variances can lie outside float16's range.
    """
    tensors = {}
    for key, value in network.state_dict().items():
        convolution_or_head = value.is_floating_point() and value.dim() > 1
        tensors[key] = (value.half() if convolution_or_head else value).contiguous().clone()
    save_file(tensors, path)


def load(path: Path, classes: int) -> ResNet:
    """The network that `save` wrote, for `classes`, in evaluation mode. Raises ModelError."""
    network = resnet18(weights=None, num_classes=classes)
    try:
        tensors = load_file(path)
        network.load_state_dict(
            {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}
        )
    except (OSError, RuntimeError, SafetensorError) as error:
        message = f"{path}: are not the weights of a ResNet-18 with {classes} outputs: {error}"
        raise errors.ModelError(message) from error
    return network.eval()


def bfloat16_is_fast() -> bool:
    """Whether this CPU has instructions for bfloat16 (AMX or AVX-512 BF16), so that autocast gains time."""
    return bool(
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001  nothing public tells
    )
