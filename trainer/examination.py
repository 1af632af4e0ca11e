"""`evaluate`: a model, found by name or path, on folders of photos whose class is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pawsort import bundle, classifier, engine, errors, image, machine, registry
from trainer import dataset, evaluate
from trainer.dataset import Side
from trainer.listener import Listener
from trainer.reading import Skipped


def examine(
    data: Sequence[Path],
    model: str,
    models: Path,
    other: Path | None,
    *,
    kind: engine.Kind,
    unseen: bool,
    listener: Listener,
) -> tuple[dict[str, Any], tuple[Skipped, ...]]:
    """The document that `evaluate --json` prints, and the files that could not be read.

    `unseen` leaves out photos that the model learned from. Raises DataError or ModelError.
    """
    opened = bundle.load(locate(model, models))
    judge = classifier.Classifier(opened, engine.open_engine(kind, opened))
    found = dataset.find(data, least_classes=1)
    strangers = dataset.read_folder(other) if other else []
    workers = machine.usable_cores()

    listener.stage("Judging photos")
    judged = evaluate.judge(
        judge,
        [photo.path for photo in found],
        [photo.label for photo in found],
        limits=image.Limits(),
        workers=workers,
        progress=listener.counted,
    )
    learned = set(opened.manifest.get("data", {}).get("sides", {}).get(Side.TRAIN, ()))
    photos = [photo for photo in judged.photos if not (unseen and photo.sha256 in learned)]
    if not photos:
        raise errors.DataError(
            f"{data[0]}: has no readable photo" + (" that is new to the model" if unseen else "")
        )
    document = {
        "model": opened.name,
        "engine": judge.engine.name,
        "learned_from": sum(photo.sha256 in learned for photo in photos),
        **evaluate.metrics(photos, opened.labels),
        "skipped": len(judged.skipped),
    }
    skipped = judged.skipped
    if strangers:
        listener.stage("Judging photos of no class")
        others = evaluate.judge(
            judge,
            strangers,
            [None] * len(strangers),
            limits=image.Limits(),
            workers=workers,
            progress=listener.counted,
        )
        document |= evaluate.other_metrics(photos, others.photos)
        skipped += others.skipped
    return document, skipped


def locate(model: str, models: Path) -> Path:
    """The folder of a model, given by name or path. Raises ModelError."""
    path = Path(model)
    if (path / bundle.MANIFEST).is_file():
        return path.resolve()
    if path.is_dir() or "/" in model:
        raise errors.ModelError(f"{path}: no model here ({bundle.MANIFEST} is missing)")
    return registry.Registry(models).path(model)
