"""One fit, from folders of photos to a model in the registry.

Reads downward: find and decode the photos, train, make the serving graph, fit the decision rule, measure on photos
that nothing was chosen with, write the report, publish.
"""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import pawsort
from pawsort import bundle, classifier, engine, errors, image, machine, network, registry
from trainer import calibrate, dataset, evaluate, export, fit, gate, report, serving
from trainer.cache import PhotoCache
from trainer.dataset import Side
from trainer.listener import Listener
from trainer.reading import Skipped

SIZE = 192  # pixels; see docs/training.md
QUICK_SIZE = 160  # a quick run ends with smaller pictures, and the best size to serve is a little above that
CACHE_SHORT_SIDE = 256  # pixels; what "centre" at 224 wants, and more than any training picture
CHECKPOINTS = ".checkpoints"  # folder of interrupted runs, inside the models folder


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be made."""

    data: tuple[Path, ...]
    found: tuple[dataset.Found, ...] = ()  # the photos, where they are not simply all those in `data`
    other: Path | None = None
    init: str = "imagenet"  # or "current", or a path
    models: Path = Path("models")
    name: str
    recipe: fit.Recipe
    size: int = SIZE  # side of the pictures that the model will see, pixels
    seed: int = 0
    device: str = "auto"
    resume: bool = False
    threads: int | None = (
        None  # for arithmetic; None: one a core. Fewer are faster where others use the cores too
    )
    target_precision: float = calibrate.TARGET_PRECISION
    cache: Path
    cache_is_own: bool = False  # it holds nobody else's photos: those that are gone are removed from it
    workers: int = field(default_factory=machine.usable_cores)
    limits: image.Limits = field(default_factory=image.Limits)
    report_photos: bool = True


@dataclass(frozen=True, kw_only=True)
class Made:
    """What came of it."""

    bundle: bundle.Bundle
    made_current: bool
    skipped: tuple[Skipped, ...]
    metrics: Mapping[str, Any]
    seconds: float

    def document(self) -> dict[str, Any]:
        """The result as `fit --json` prints it."""
        return {
            "model": self.bundle.name,
            "path": str(self.bundle.path),
            "current": self.made_current,
            "seconds": round(self.seconds, 1),
            "skipped": [{"file": str(photo.path), "reason": photo.reason} for photo in self.skipped],
            "graph": self.bundle.manifest["graph"],
            **self.metrics,
        }


Gate = Callable[[Sequence[dataset.Example], Sequence[evaluate.Judged]], gate.Verdict]
"""Told the photos that were not learned from and what the new model says of them: shall it serve?"""


def make(
    order: Order,
    listener: Listener,
    stop: Callable[[], bool] = lambda: False,
    pass_gate: Gate | None = None,
) -> Made:
    """Carry out an order. Raises DataError or ModelError, and fit.InterruptedFit when `stop` says so while training.

    The new model becomes the current one if `pass_gate` lets it; without a gate, if it is the first one there.
    """
    started = time.monotonic()
    shelf = registry.Registry(order.models)
    if (order.models / order.name).exists():
        message = f"{order.models / order.name}: there is a model of that name already; choose another --name"
        raise errors.DataError(message)

    # ---- Find and decode the photos ----
    listener.stage("Reading photos")
    found = list(order.found) or dataset.find(order.data)
    others = dataset.read_folder(order.other) if order.other else []
    with PhotoCache(order.cache, short_side=CACHE_SHORT_SIDE) as cache:
        filled = cache.fill(
            [photo.path for photo in found],
            limits=order.limits,
            workers=order.workers,
            progress=listener.counted,
        )
        if order.cache_is_own:
            cache.forget_all_but(set(filled.sha256.values()))
        previous = _previous_sides(order, shelf)
        data = dataset.assemble(found, filled.sha256, cache, previous=previous)
        train, validation = (
            serving.CachedPhotos(data.on(side), data.labels, cache) for side in (Side.TRAIN, Side.VALIDATION)
        )
        listener.note(_told(data, filled.decoded, filled.skipped))

        # ---- Train ----
        listener.stage("Training")
        checkpoint = order.models / CHECKPOINTS / f"{order.name}.pt"
        averaged, history, device = _trained(
            order, shelf, data, train, validation, checkpoint, listener, stop
        )

        # ---- Make the serving graph ----
        listener.stage("Making the serving graph")
        graph, quantization = serving.serving_graph(
            averaged, train, validation, size=order.size, seed=order.seed, listener=listener
        )

        # ---- Fit the decision rule, on validation photos alone ----
        listener.stage("Fitting the decision rule")
        rule, chosen = serving.decision_rule(
            graph,
            data.labels,
            train,
            serving.CachedPhotos(data.typical(Side.VALIDATION), data.labels, cache),
            size=order.size,
            seed=order.seed,
            target_precision=order.target_precision,
        )

    # ---- Put the bundle together ----
    staged = shelf.staging(order.name)
    network.save(averaged, staged / bundle.WEIGHTS)
    export.save_graph(graph, staged / bundle.GRAPH)
    if rule.familiarity is not None:
        bundle.write_statistics(staged, rule.familiarity)
    manifest: dict[str, Any] = {
        "name": order.name,
        "created": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "labels": list(data.labels),
        "input": {
            "size": order.size,
            "views": list(serving.VIEWS),
            "layout": "NHWC",
            "type": "uint8",
            "colours": "RGB",
        },
        "feature_length": network.FEATURES,
        "graph": quantization,
        "decision": {**bundle.rule_fields(rule), "chosen": chosen},
        "parent": _parent(order, shelf),
        "training": {
            "init": order.init if order.init in {"imagenet", "current"} else Path(order.init).name,
            "seed": order.seed,
            "recipe": asdict(order.recipe),
            "seconds": round(sum(history.seconds), 1),
            "device": str(device),
            "bfloat16": network.bfloat16_is_fast(),
            "threads": torch.get_num_threads(),
            "history": asdict(history),
        },
        "data": {
            "fingerprint": data.fingerprint(),
            "counts": data.counts(),
            "skipped": len(filled.skipped),
            "copies": data.copies,
            "conflicts": len(data.conflicts),
            "near_duplicate_groups": len(data.near_duplicates),
            "sides": {side.value: [example.sha256 for example in data.on(side)] for side in Side},
            # What a model before this one met and is gone now: it may come back, and is no stranger then.
            "earlier_sides": data.sides_of_others(previous),
            # To find them again. Where they lie is nobody's business in a model that is given away.
            "folders": [os.path.relpath(folder, order.models) for folder in order.data]
            if order.report_photos
            else [],
        },
        "versions": _versions(),
    }
    sealed = bundle.seal(staged, manifest)

    # ---- Measure it as the daemon would run it, on the test photos' files ----
    listener.stage("Measuring on the test photos")
    judge = classifier.Classifier(sealed, engine.open_engine("openvino", sealed))
    judge.smoke_test()
    tested = _judge(judge, data.on(Side.TEST), order, listener)
    validated = _judge(judge, data.on(Side.VALIDATION), order, listener)
    metrics = evaluate.metrics(tested.photos, data.labels)
    strangers = None
    if others:
        strangers = evaluate.judge(
            judge,
            others,
            [None] * len(others),
            limits=order.limits,
            workers=order.workers,
            progress=listener.counted,
        )
        metrics |= evaluate.other_metrics(tested.photos, strangers.photos)
        metrics.pop("other_auto_sorted_files")
    manifest["metrics"] = {"test": metrics, "validation": evaluate.metrics(validated.photos, data.labels)}

    # ---- Is it to serve? ----
    verdict = None
    if pass_gate is not None:
        listener.stage("Asking the old model about the same photos")
        held_out = [*data.on(Side.TEST), *data.on(Side.VALIDATION)]
        verdict = pass_gate(held_out, [*tested.photos, *validated.photos])
        manifest["gate"] = verdict.document()

    # ---- Report and publish ----
    listener.stage("Writing the report")
    page = report.render(
        manifest,
        data,
        tested.photos,
        validated.photos,
        strangers.photos if strangers else (),
        filled.skipped,
        verdict,
        photos=order.report_photos,
    )
    (staged / bundle.REPORT).write_text(page, encoding="utf-8")
    bundle.seal(staged, manifest)
    published = shelf.publish(staged, order.name)
    serves = verdict.serves if verdict else not (order.models / registry.CURRENT).is_symlink()
    if serves:
        shelf.use(order.name)
    checkpoint.unlink(missing_ok=True)
    return Made(
        bundle=bundle.load(published),
        made_current=serves,
        skipped=filled.skipped,
        metrics=metrics,
        seconds=time.monotonic() - started,
    )


def interrupted(models: Path) -> str:
    """The name of the run in the folder `models` that was interrupted last. Raises DataError when there is none."""
    checkpoints = sorted((models / CHECKPOINTS).glob("*.pt"), key=lambda file: file.stat().st_mtime)
    if not checkpoints:
        raise errors.DataError(
            f"{models}: no interrupted run to resume; check --out, or start again without --resume"
        )
    return checkpoints[-1].stem


# -- Parts ------------------------------------------------------------------------------------------


def _trained(
    order: Order,
    shelf: registry.Registry,
    data: dataset.Dataset,
    train: serving.CachedPhotos,
    validation: serving.CachedPhotos,
    checkpoint: Path,
    listener: Listener,
    stop: Callable[[], bool],
) -> tuple[network.Network, fit.History, torch.device]:
    """The trained network, on the CPU, how it went and where it was trained."""
    torch.manual_seed(order.seed)
    if order.threads is not None:
        torch.set_num_threads(order.threads)
    device = _device(order.device)
    weights = _initial_weights(order.init, shelf)
    model = network.build(len(data.labels), weights)
    if order.init == "current":
        _keep_head(model, data.labels, weights, bundle.load(shelf.current()).labels)
    watched = validation.views(order.size, ("centre",))[:1000, 0]
    if not order.resume:
        checkpoint.unlink(missing_ok=True)
    elif not checkpoint.exists():
        raise errors.DataError(
            f"{checkpoint}: no interrupted run of that name to resume; check --out and --name"
        )
    identity = {
        "recipe": repr(order.recipe),
        "seed": order.seed,
        "data": data.fingerprint(),
        "init": order.init,
        "size": order.size,
    }
    averaged, history = fit.train(
        model,
        train,
        order.recipe,
        seed=order.seed,
        device=device,
        checkpoint=checkpoint,
        identity=identity,
        validate=lambda net: fit.validation_accuracy(net, watched, validation.targets[:1000], device),
        progress=listener.trained,
        stop=stop,
    )
    return averaged.to("cpu", memory_format=torch.contiguous_format).eval(), history, device


def _judge(
    judge: classifier.Classifier, examples: Sequence[dataset.Example], order: Order, listener: Listener
) -> evaluate.Judgements:
    return evaluate.judge(
        judge,
        [example.path for example in examples],
        [example.label for example in examples],
        limits=order.limits,
        workers=order.workers,
        progress=listener.counted,
    )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise errors.ModelError(f"--device {name}: cannot be used here: {error}") from error
    return device


def _initial_weights(init: str, shelf: registry.Registry) -> network.Weights:
    if init == "imagenet":
        return network.imagenet_weights()
    if init == "current":
        return network.read_weights(bundle.load(shelf.current()).weights)
    path = Path(init)
    return network.read_weights(path / bundle.WEIGHTS if path.is_dir() else path)


def _keep_head(
    model: network.Network, labels: Sequence[str], weights: network.Weights, known: Sequence[str]
) -> None:
    """Give the outputs of classes that the model to start from knows, `known`, what it knows of them."""
    with torch.no_grad():
        for index, label in enumerate(labels):
            if label in known:
                model.fc.weight[index] = weights["fc.weight"][known.index(label)].float()
                model.fc.bias[index] = weights["fc.bias"][known.index(label)].float()


def _parent(order: Order, shelf: registry.Registry) -> str | None:
    return bundle.load(shelf.current()).name if order.init == "current" else None


def _previous_sides(order: Order, shelf: registry.Registry) -> dict[str, Side]:
    """The side of every photo that the model to start from has met; it keeps it, or the test would be none."""
    if order.init != "current":
        return {}
    return dataset.sides_met(bundle.read_manifest(shelf.current()).get("data", {}))


def _told(data: dataset.Dataset, decoded: int, skipped: Sequence[Skipped]) -> str:
    counts = {label: sum(sides.values()) for label, sides in data.counts().items()}
    told = f"{len(data.examples)} photos ({', '.join(f'{label} {count}' for label, count in counts.items())})"
    told += f"; {decoded} decoded, the others were in the cache"
    for number, what in (
        (data.copies, "copies left out"),
        (len(data.conflicts), "photos left out because they lie under two classes"),
        (len(data.near_duplicates), "groups of near-duplicates, each kept on one side of the split"),
        (len(skipped), "files skipped"),
    ):
        if number:
            told += f"; {number} {what}"
    return told


def _versions() -> dict[str, str]:
    names = ("torch", "torchvision", "openvino", "nncf", "numpy", "opencv-python-headless")
    return {
        "pawsort": pawsort.__version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in names},
        "machine": platform.machine(),
    }
