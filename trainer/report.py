"""One HTML page about a model, complete in itself: figures, charts, and the photos it got wrong."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np

from pawsort import image
from trainer import charts, reading
from trainer.dataset import Dataset, Side
from trainer.evaluate import Judged
from trainer.gate import Verdict

_THUMBNAIL = 168  # pixels, short side
_MOST_SHOWN = 12  # photos a section


@dataclass(frozen=True, kw_only=True)
class Card:
    """A photo in the report."""

    name: str  # class folder and file
    picture: str | None  # a data: URL, or None when photos are left out
    label: str | None
    best: str
    confidence: float
    probabilities: tuple[tuple[str, float], ...]  # the likeliest three


def render(
    manifest: Mapping[str, Any],
    data: Dataset,
    tested: Sequence[Judged],
    validated: Sequence[Judged],
    strangers: Sequence[Judged] = (),
    skipped: Sequence[reading.Skipped] = (),
    verdict: Verdict | None = None,
    *,
    photos: bool = True,
) -> str:
    """The page. `photos` false leaves the pictures out, for a model that is given away without them."""
    labels = list(data.labels)
    confidence = np.array([photo.decision.confidence for photo in tested])
    right = np.array([photo.right for photo in tested], dtype=bool)
    metrics = manifest["metrics"]["test"]
    held_out = [*tested, *validated]
    mistakes = _ranked((photo for photo in tested if not photo.right), highest=True)
    unsure = _ranked((photo for photo in tested if photo.decision.label is None), highest=False)
    suspects = _ranked(
        (photo for photo in held_out if not photo.right and max(photo.decision.probabilities) > 0.8),
        highest=True,
    )
    taken = _ranked((photo for photo in strangers if photo.decision.label is not None), highest=True)
    broken = _ranked((pair.challenger for pair in verdict.broken), highest=True) if verdict else []
    fixed = _ranked((pair.challenger for pair in verdict.fixed), highest=True) if verdict else []
    pictures = _thumbnails([*mistakes, *unsure, *suspects, *taken, *broken, *fixed]) if photos else {}
    template = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("report.html.jinja")
    return template.render(
        manifest=manifest,
        metrics=metrics,
        interval=interval,
        labels=labels,
        counts=data.counts(),
        sides=[side.value for side in Side],
        data=data,
        named=_named,
        skipped=skipped,
        sections=[
            (
                "What it breaks",
                "Held-out photos that the model before it had right and this one has wrong.",
                _cards(broken, labels, pictures),
            ),
            (
                "What it fixes",
                "Held-out photos that the model before it had wrong and this one has right.",
                _cards(fixed, labels, pictures),
            ),
            (
                "Mistakes, the most confident first",
                "Test photos whose likeliest class is not the folder they lie in.",
                _cards(mistakes, labels, pictures),
            ),
            (
                "Least sure",
                "Test photos that the daemon would leave for a person to decide, least confident first.",
                _cards(unsure, labels, pictures),
            ),
            (
                "Perhaps in the wrong folder",
                (
                    "Photos that were not learned from and that the model firmly takes for another class. "
                    "Advice only: nothing was moved or relabelled."
                ),
                _cards(suspects, labels, pictures),
            ),
            (
                "Taken for a class although of none",
                "Photos of no class that would have been sorted.",
                _cards(taken, labels, pictures),
            ),
        ],
        curves=charts.learning_curves(manifest["training"]["history"]),
        confusion=charts.confusion(metrics["confusion"], labels),
        reliability=charts.reliability(confidence, right) if len(tested) else "",
        coverage=charts.coverage(
            confidence, right, (metrics["auto_sorted"], metrics["auto_sorted_precision"])
        )
        if len(tested)
        else "",
        histogram=charts.confidence_histogram(confidence, [photo.decision.confidence for photo in strangers])
        if strangers
        else "",
    )


def interval(share: float | None, count: int) -> tuple[float, float] | None:
    """The 95 % interval of a share seen in `count` photos (Wilson 1927, "score interval")."""
    if share is None or not count:
        return None
    z = 1.96
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _ranked(photos: Iterable[Judged], *, highest: bool) -> list[Judged]:
    ranked = sorted(photos, key=lambda photo: (photo.decision.confidence, photo.sha256), reverse=highest)
    return ranked[:_MOST_SHOWN]


def _cards(photos: Sequence[Judged], labels: Sequence[str], pictures: Mapping[Path, str]) -> list[Card]:
    return [
        Card(
            name=_named(photo.path),
            picture=pictures.get(photo.path),
            label=photo.label,
            best=photo.decision.best,
            confidence=photo.decision.confidence,
            probabilities=tuple(
                sorted(zip(labels, photo.decision.probabilities, strict=True), key=lambda pair: -pair[1])[:3]
            ),
        )
        for photo in photos
    ]


def _named(path: Path) -> str:
    """The class folder and the file: where the rest of the folders lie is nobody's business."""
    return f"{path.parent.name}/{path.name}".encode(errors="replace").decode()


def _thumbnails(photos: Sequence[Judged]) -> dict[Path, str]:
    """A small JPEG of each photo, as a data: URL."""
    paths = sorted({photo.path for photo in photos})
    render_ = image.Render(size=_THUMBNAIL, views=(), keep_short_side=_THUMBNAIL)
    pictures = {}
    for index, result in reading.read(paths, render_, image.Limits(), workers=1):
        if isinstance(result, reading.Skipped) or result.whole is None:
            continue  # gone since it was judged; its card says so by having no picture
        bgr = cv2.cvtColor(result.whole, cv2.COLOR_RGB2BGR)
        _, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 82])
        pictures[paths[index]] = "data:image/jpeg;base64," + base64.b64encode(jpeg.tobytes()).decode()
    return pictures
