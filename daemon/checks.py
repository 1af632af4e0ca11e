"""Can the daemon run with these settings? Looks, and changes nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from daemon.inbox import file_system
from daemon.mounts import Mounts
from pawsort import errors, registry
from pawsort.classifier import open_classifier
from pawsort.config import Settings


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing looked at: what it is, what was found, and what to do if it cannot be used."""

    what: str
    value: str
    usable: bool
    detail: str


def examine(settings: Settings) -> list[Finding]:
    """Look at folders, model and engine."""
    folders = [
        _folder(name, getattr(settings, name)) for name in ("inbox", "sorted", "review", "rejected", "state")
    ]
    return [*folders, *_mounts(settings), *_model(settings)]


def as_document(settings: Settings, findings: Sequence[Finding]) -> dict[str, Any]:
    """Settings in force and findings, as plain values."""
    return {
        "usable": all(finding.usable for finding in findings),
        "settings": settings.model_dump(mode="json"),
        "findings": [asdict(finding) for finding in findings],
    }


def _folder(name: str, folder: Path) -> Finding:
    if folder.is_dir():
        usable = os.access(folder, os.R_OK | os.W_OK | os.X_OK)
        detail = file_system(folder) if usable else "cannot be written to; change its owner or permissions"
    elif os.path.lexists(folder):
        usable, detail = False, "is there, but is no folder; move it away or choose another"
    else:
        parent = next(parent for parent in folder.parents if parent.exists())
        usable = os.access(parent, os.W_OK | os.X_OK)
        detail = "will be made" if usable else f"is missing, and cannot be made in {parent}"
    return Finding(what=name, value=str(folder), usable=usable, detail=detail)


def _mounts(settings: Settings) -> list[Finding]:
    try:
        Mounts(settings).check()
    except errors.MachineError as error:
        return [Finding(what="mounts", value="missing", usable=False, detail=str(error))]
    return []


def _model(settings: Settings) -> list[Finding]:
    try:
        folder = registry.Registry(settings.models).current()
        classifier = open_classifier(folder, kind=settings.engine, threshold=settings.threshold)
    except errors.ModelError as error:
        return [Finding(what="model", value=str(settings.models), usable=False, detail=str(error))]
    model = classifier.bundle
    figures = "" if model.accuracy is None else f", {model.accuracy:.1%} right on photos it had not seen"
    return [
        Finding(
            what="model",
            value=f"{model.name} ({folder})",
            usable=True,
            detail=f"{', '.join(model.labels)}; sure from {classifier.threshold:.3f}{figures}",
        ),
        Finding(
            what="engine",
            value=classifier.engine.name,
            usable=True,
            detail=f"answers; {model.precision} graph",
        ),
    ]
