"""One log line a photo, after the move; and the sums of a run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog

from daemon.filing import Filed
from daemon.logs import readable
from daemon.recovery import Recovered

log = structlog.get_logger()


@dataclass(kw_only=True)
class Tally:
    """What happened in one run."""

    sorted: dict[str, int] = field(default_factory=dict)  # by label
    review: int = 0
    rejected: dict[str, int] = field(default_factory=dict)  # by reason
    left: dict[str, int] = field(default_factory=dict)  # files left in the inbox, by reason
    problems: dict[str, str] = field(default_factory=dict)  # faults of the machine that lasted to the end
    started: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    last_photo: str | None = None

    @property
    def total(self) -> int:
        """All photos filed."""
        return sum(self.sorted.values()) + self.review + sum(self.rejected.values())

    def add(self, photo: Filed) -> None:
        """Count a photo that was filed."""
        verdict = photo.verdict
        if verdict.event == "sorted" and verdict.label is not None:
            self.sorted[verdict.label] = self.sorted.get(verdict.label, 0) + 1
        elif verdict.event == "review":
            self.review += 1
        else:
            reason = (verdict.reason or "").partition(":")[0]
            self.rejected[reason] = self.rejected.get(reason, 0) + 1
        self.last_photo = f"{readable(verdict.path.name)}: {verdict.label or verdict.event}"

    def leave(self, reason: str, count: int = 1) -> None:
        """Count files that stay in the inbox."""
        self.left[reason] = self.left.get(reason, 0) + count


def write(filed: Sequence[Filed]) -> None:
    """Log photos that were filed, one line each."""
    for photo in filed:
        verdict = photo.verdict
        line = {
            "id": photo.id,
            "file": readable(verdict.path.name),
            "destination": readable(photo.destination),
            "label": verdict.label,
            "confidence": verdict.confidence,
            "probabilities": verdict.probabilities,
            "model": verdict.model,
            "sha256": verdict.sha256,
            "bytes": verdict.identity.bytes,
            "width": verdict.width,
            "height": verdict.height,
            "decode_ms": verdict.decode_ms,
            "infer_ms": verdict.infer_ms,
            "latency_ms": photo.latency_ms,
        }
        if verdict.reason is not None:
            line["reason"] = verdict.reason
        log.info(verdict.event, **line)


def write_recovered(recovered: Recovered) -> None:
    """Log what a crash had left half done, one line a photo."""
    for what, rows in vars(recovered).items():
        for row in rows:
            source, destination = readable(row.source), readable(row.destination)
            log.warning(
                "recovered", what=what, id=row.id, file=source, destination=destination, sha256=row.sha256
            )
