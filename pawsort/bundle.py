"""A model on disk: one folder that is complete and verified, or is no model.

    bundle.json           what it is: labels, input, decision rule, metrics, how it was made, sha256 of every other file
    model.xml, model.bin  OpenVINO graph: uint8 NHWC in, outputs "logits" (n, K) and "features" (n, D)
    decision.safetensors  class means and whitening for the familiarity part of the rule (when it has one)
    weights.safetensors   the network's weights, to fine-tune from and for the PyTorch engine
    report.html           what a person looks at

Nothing here runs code from a file: JSON, safetensors and OpenVINO IR only.

Format history
1   first version
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pawsort import errors
from pawsort.decision import Familiarity, Look, Rule
from pawsort.render import VIEWS

FORMAT_VERSION = 1
MANIFEST = "bundle.json"
GRAPH = "model.xml"
GRAPH_WEIGHTS = "model.bin"
STATISTICS = "decision.safetensors"
WEIGHTS = "weights.safetensors"
REPORT = "report.html"

_REQUIRED_FILES = (GRAPH, GRAPH_WEIGHTS, WEIGHTS)


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A verified model. `manifest` is the whole of bundle.json, for those who want more than the fields here."""

    path: Path
    name: str
    labels: tuple[str, ...]
    size: int  # side of the square input picture, pixels
    views: tuple[str, ...]  # names of pawsort.image views, in the order the rule counts them
    feature_length: int
    precision: str  # of the serving graph: "int8" or "float"
    rule: Rule
    manifest: Mapping[str, Any]

    @property
    def graph(self) -> Path:
        """The OpenVINO graph; its weights lie beside it."""
        return self.path / GRAPH

    @property
    def weights(self) -> Path:
        """The network's weights as safetensors."""
        return self.path / WEIGHTS

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Figures measured when the model was made."""
        metrics: Mapping[str, Any] = self.manifest.get("metrics", {})
        return metrics

    @property
    def accuracy(self) -> float | None:
        """Share right of the photos that the model was tested on when it was made, 0..1."""
        return accuracy(self.manifest)

    @property
    def created(self) -> str:
        """When the model was made, ISO 8601."""
        return str(self.manifest.get("created", ""))

    @property
    def parent(self) -> str | None:
        """Name of the model this one was refreshed from, if any."""
        parent: str | None = self.manifest.get("parent")
        return parent


def load(path: Path) -> Bundle:
    """Read and verify the bundle in folder `path`.

    Raises ModelError, naming file and field, when a file is missing or damaged or a field does not make sense.
    """
    manifest = read_manifest(path)
    _verify_files(path, manifest)
    return _parse(path, manifest)


def read_manifest(path: Path) -> dict[str, Any]:
    """bundle.json of the bundle in `path`, its version checked and nothing else. Raises ModelError."""
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_bytes())
    except FileNotFoundError:
        message = f"{path}: no model here ({MANIFEST} is missing)"
        raise errors.ModelError(message) from None
    except OSError as error:
        message = f"{file}: cannot be read: {error.strerror}"
        raise errors.ModelError(message) from error
    except ValueError as error:
        message = f"{file}: is not JSON: {error}"
        raise errors.ModelError(message) from error
    if not isinstance(manifest, dict):
        message = f"{file}: is not a JSON object"
        raise errors.ModelError(message)
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        message = (
            f"{file}: format_version is {version!r}, this pawsort reads {FORMAT_VERSION}; "
            "install the pawsort that made the model, or train it again"
        )
        raise errors.ModelError(message)
    return manifest


def accuracy(manifest: Mapping[str, Any]) -> float | None:
    """Share right of the photos that a model was tested on, 0..1, from its bundle.json."""
    found = manifest.get("metrics", {}).get("test", {}).get("accuracy")
    return float(found) if isinstance(found, int | float) else None


def seal(path: Path, manifest: Mapping[str, Any]) -> Bundle:
    """Make the folder `path`, in which all other files already lie, a bundle: write bundle.json with their checksums.

    `manifest` has every field but `format_version` and `files`. Everything is synced to disk before bundle.json
    appears, so a folder with a bundle.json is complete. Returns the bundle as `load` reads it back.
    """
    files = {}
    for file in sorted(path.iterdir()):
        if file.is_file() and file.name != MANIFEST:
            with file.open("rb+") as stream:
                os.fsync(stream.fileno())
            files[file.name] = {"sha256": _sha256(file), "bytes": file.stat().st_size}
    text = json.dumps(
        {"format_version": FORMAT_VERSION, **manifest, "files": files}, indent=2, ensure_ascii=False
    )
    temporary = path / f".{MANIFEST}.part"
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    for name in files:
        # Some writers make their files private; a daemon with an account of its own has to read them.
        (path / name).chmod(temporary.stat().st_mode)
    temporary.replace(path / MANIFEST)
    sync_directory(path)
    return load(path)


def rule_fields(rule: Rule) -> dict[str, Any]:
    """The decision rule as it stands in bundle.json under "decision"; its arrays go to `write_statistics`."""
    fields: dict[str, Any] = {
        "looks": [
            {"views": list(look.views), "temperature": look.temperature, "threshold": look.threshold}
            for look in rule.looks
        ]
    }
    if rule.familiarity is not None:
        fields["familiarity"] = {"centre": rule.familiarity.centre, "scale": rule.familiarity.scale}
    return fields


def write_statistics(path: Path, familiarity: Familiarity) -> None:
    """Write the arrays of the decision rule into the bundle folder `path`."""
    from safetensors.numpy import save_file

    arrays = {"means": familiarity.means, "whitening": familiarity.whitening}
    save_file(
        {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in arrays.items()},
        path / STATISTICS,
    )


def sync_directory(path: Path) -> None:
    """Make the names in folder `path` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _verify_files(path: Path, manifest: Mapping[str, Any]) -> None:
    files = manifest.get("files")
    if not isinstance(files, dict):
        message = f"{path / MANIFEST}: files is missing"
        raise errors.ModelError(message)
    for name in _REQUIRED_FILES:
        if name not in files:
            message = f"{path / MANIFEST}: files does not list {name}"
            raise errors.ModelError(message)
    for name, entry in files.items():
        if Path(name).name != name:
            message = f"{path / MANIFEST}: files lists {name!r}, which is not a plain file name"
            raise errors.ModelError(message)
        try:
            found = _sha256(path / name)
        except OSError as error:
            message = f"{path / name}: listed in {MANIFEST} but cannot be read: {error.strerror}"
            raise errors.ModelError(message) from error
        if not isinstance(entry, dict) or found != entry.get("sha256"):
            message = f"{path / name}: damaged: its sha256 is not the one in {MANIFEST}; copy the model again"
            raise errors.ModelError(message)


def _parse(path: Path, manifest: Mapping[str, Any]) -> Bundle:
    field = "the file"
    try:
        field = "labels"
        labels = tuple(str(label) for label in _list(manifest["labels"]))
        if len(labels) < 2 or len(set(labels)) != len(labels):
            raise ValueError("wants two or more different labels")
        for label in labels:
            _check_label(label)
        field = "input"
        views = tuple(str(view) for view in _list(manifest["input"]["views"]))
        if unknown := sorted(set(views) - set(VIEWS)):
            raise ValueError(
                f"views {', '.join(unknown)} are unknown to this pawsort; it knows {', '.join(VIEWS)}"
            )
        size = int(manifest["input"]["size"])
        if size <= 0:
            raise ValueError("wants a size above 0")
        field = "decision"
        looks = tuple(
            Look(
                views=tuple(int(view) for view in look["views"]),
                temperature=float(look["temperature"]),
                threshold=float(look["threshold"]),
            )
            for look in manifest["decision"]["looks"]
        )
        if not looks or not all(0 <= view < len(views) for look in looks for view in look.views):
            raise ValueError("wants one look or more, of views that input.views lists")
        if not all(look.views and look.temperature > 0 and math.isfinite(look.threshold) for look in looks):
            raise ValueError("wants views, a temperature above 0 and a finite threshold in each look")
        field = "feature_length"
        feature_length = int(manifest["feature_length"])
        field = "decision"
        familiarity = _load_familiarity(path, manifest, (len(labels), feature_length))
        field = "name"
        name = str(manifest["name"])
        field = "graph"
        precision = str(manifest["graph"]["precision"])
    except (KeyError, TypeError, ValueError) as error:
        problem = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        message = f"{path / MANIFEST}: {field}: {problem}"
        raise errors.ModelError(message) from error
    return Bundle(
        path=path,
        name=name,
        labels=labels,
        size=size,
        views=views,
        feature_length=feature_length,
        precision=precision,
        rule=Rule(labels=labels, looks=looks, familiarity=familiarity),
        manifest=manifest,
    )


def _check_label(label: str) -> None:
    """A label becomes the name of a folder: it must stay inside the folder it is joined to."""
    if label in {"", ".", ".."} or "/" in label or "\0" in label or label.startswith("."):
        message = f"{label!r} cannot be the name of a folder"
        raise ValueError(message)


def _list(value: object) -> list[Any]:
    """A string is a sequence too, of its letters: never what is meant."""
    if not isinstance(value, list):
        raise TypeError(f"wants a list, not {value!r}")
    return value


def _load_familiarity(path: Path, manifest: Mapping[str, Any], shape: tuple[int, int]) -> Familiarity | None:
    if "familiarity" not in manifest["decision"]:
        return None
    if STATISTICS not in manifest["files"]:
        raise ValueError(f"has a familiarity, and files does not list {STATISTICS}")
    fields = manifest["decision"]["familiarity"]
    centre, scale = float(fields["centre"]), float(fields["scale"])
    if not math.isfinite(centre) or not 0 < scale < math.inf:
        raise ValueError("wants a finite centre and a scale above 0 of its familiarity")
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    classes, feature_length = shape
    try:
        arrays = load_file(path / STATISTICS)
    except (OSError, SafetensorError) as error:
        message = f"{STATISTICS} cannot be read: {error}"
        raise ValueError(message) from error
    means, whitening = arrays["means"], arrays["whitening"]
    rank = means.shape[-1] if means.ndim else 0
    if means.shape != (classes, rank) or whitening.shape != (feature_length, rank):
        message = f"{STATISTICS}: shapes {means.shape} and {whitening.shape} do not fit {shape}"
        raise ValueError(message)
    return Familiarity(
        means=means,
        whitening=whitening,
        centre=centre,
        scale=scale,
    )
