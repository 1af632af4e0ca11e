"""From what the decoders say of a photo to the verdict that is filed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from daemon.filing import Verdict
from daemon.intake import Ready
from daemon.logs import readable
from pawsort.classifier import Classifier
from pawsort.decision import Decision
from pawsort.decoders import Decoded, Undecodable
from pawsort.ledger import Ledger


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A photo that was decoded, waiting to be classified."""

    ready: Ready
    decoded: Decoded


class Judge:
    """Asks the model, and knows what to do with duplicates: "keep", "skip" or "folder"."""

    def __init__(self, classifier: Classifier, ledger: Ledger, *, duplicates: str, batch_size: int) -> None:
        self.classifier = classifier  # may be replaced between two calls
        self._ledger = ledger
        self._duplicates = duplicates
        self._batch_size = batch_size

    def decide(self, pictures: Sequence[Picture]) -> list[Verdict]:
        """Verdicts about all pictures that are there, asked a batch at a time.

        Raises LedgerError, only when it has to look for duplicates.
        """
        verdicts: list[Verdict] = []
        for start in range(0, len(pictures), self._batch_size):
            batch = pictures[start : start + self._batch_size]
            began = time.perf_counter()
            decisions = self.classifier.classify(np.stack([picture.decoded.views for picture in batch]))
            infer_ms = (time.perf_counter() - began) * 1e3 / len(batch)
            for picture, decision in zip(batch, decisions, strict=True):
                verdict = self._verdict(picture, decision, infer_ms)
                if self._duplicates == "folder":
                    verdict = self._aside_if_duplicate(verdict, verdicts)
                verdicts.append(verdict)
        return verdicts

    def split_duplicates(
        self, pictures: Sequence[Picture]
    ) -> tuple[list[Picture], list[tuple[Picture, Path]]]:
        """Pictures to go on with, and those that stay in the inbox together with the photo they repeat.

        Raises LedgerError.
        """
        if self._duplicates != "skip":
            return list(pictures), []
        kept: list[Picture] = []
        skipped: list[tuple[Picture, Path]] = []
        beside: dict[str, Path] = {}
        for picture in pictures:
            twin = self._twin(picture.decoded.sha256, beside)
            if twin is None:
                beside[picture.decoded.sha256] = picture.ready.path
                kept.append(picture)
            else:
                skipped.append((picture, twin))
        return kept, skipped

    def reject(self, ready: Ready, result: Undecodable) -> Verdict:
        """The verdict about a file that is no picture."""
        return Verdict(
            path=ready.path,
            identity=ready.identity,
            noticed_at=ready.noticed_at,
            event="rejected",
            reason=f"{result.error.reason}: {result.error}",
            sha256=result.sha256,
        )

    def _verdict(self, picture: Picture, decision: Decision, infer_ms: float) -> Verdict:
        ready, decoded, model = picture.ready, picture.decoded, self.classifier.bundle
        return Verdict(
            path=ready.path,
            identity=ready.identity,
            noticed_at=ready.noticed_at,
            event="review" if decision.label is None else "sorted",
            label=decision.label,
            best=decision.best,
            confidence=decision.confidence,
            probabilities=dict(zip(model.labels, decision.probabilities, strict=True)),
            model=model.name,
            reason=decision.reason,
            sha256=decoded.sha256,
            width=decoded.header.width,
            height=decoded.header.height,
            decode_ms=decoded.decode_ms,
            infer_ms=infer_ms,
        )

    def _aside_if_duplicate(self, verdict: Verdict, beside: Sequence[Verdict]) -> Verdict:
        """The verdict itself, or one that puts a duplicate into the folder for duplicates."""
        twin = self._twin(verdict.sha256 or "", {other.sha256 or "": other.path for other in beside})
        if twin is None:
            return verdict
        reason = f"duplicate of {readable(twin)}"
        return replace(verdict, event="review", label=None, reason=reason, is_duplicate=True)

    def _twin(self, sha256: str, beside: dict[str, Path]) -> Path | None:
        """Another photo of the same bytes: one in `beside`, or one that was filed and still is where it was put."""
        if sha256 in beside:
            return beside[sha256]
        for row in self._ledger.filed_with(sha256):
            with suppress(OSError):
                if row.destination.stat().st_size == row.bytes:
                    return row.destination
        return None
