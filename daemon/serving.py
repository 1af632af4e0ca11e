"""The model that serves, and how another takes its place while photos keep coming.

A newer `current` is loaded beside the one that serves, verified and asked once. Only then may it take over; one that
does not load or answer is refused, the old one goes on, and the reason stays in the status until `current` changes.
"""

from __future__ import annotations

import os

import structlog

from pawsort import bundle, errors
from pawsort.classifier import Classifier, open_classifier
from pawsort.config import Settings
from pawsort.registry import Registry

log = structlog.get_logger()

Mark = tuple[
    str, int, int
]  # path, inode and time of a bundle.json: changes when the model behind the link does


class ServingModel:
    """Watches which model is current. `classifier` is the one that serves."""

    def __init__(self, settings: Settings) -> None:
        """Load the current model. Raises ModelError when there is none that can serve."""
        self._settings = settings
        self._registry = Registry(settings.models)
        self._seen = self._mark()
        self.classifier = self._open()
        self.problem: str | None = None

    def facts(self) -> dict[str, object]:
        """What the log says of the model."""
        model = self.classifier.bundle
        return {
            "model": model.name,
            "engine": self.classifier.engine.name,
            "labels": list(model.labels),
            "threshold": self.classifier.threshold,
        }

    def newer(self, *, asked: bool = False) -> Classifier | None:
        """The model that is to take over, loaded and verified; None when there is none.

        `asked`: look again at one that was refused, and say what came of it.
        """
        candidate = self._look(asked=asked)
        if asked:
            serving = (candidate or self.classifier).bundle.name
            log.info("reloaded", model=serving, problem=self.problem)
        return candidate

    def _look(self, *, asked: bool) -> Classifier | None:
        try:
            mark = self._mark()
        except errors.ModelError as error:
            self._refuse("current", error, self._seen)
            return None
        if mark == self._seen and not (asked and self.problem is not None):
            return None
        serving = self.classifier.bundle.path
        if mark[0] == str(serving) and self.problem is not None and not asked:
            # The link points back at the one that serves.
            self._seen, self.problem = mark, None
            return None
        try:
            candidate = self._open()
        except errors.ModelError as error:
            self._refuse(os.path.basename(mark[0]), error, mark)
            return None
        self._seen, self.problem = mark, None
        return candidate

    def take_over(self, candidate: Classifier) -> None:
        """From now on `candidate` serves."""
        old = self.classifier.bundle
        self.classifier = candidate
        log.info(
            "model changed",
            model=candidate.bundle.name,
            before=old.name,
            labels=list(candidate.bundle.labels),
        )

    def _open(self) -> Classifier:
        settings = self._settings
        return open_classifier(
            self._registry.current(),
            kind=settings.engine,
            threshold=settings.threshold,
            cache=settings.state / "cache",
        )

    def _mark(self) -> Mark:
        folder = self._registry.current()
        try:
            status = os.stat(folder / bundle.MANIFEST)
        except OSError as error:
            raise errors.ModelError(f"{folder}: {error.strerror}") from error
        return str(folder), status.st_ino, status.st_mtime_ns

    def _refuse(self, name: str, error: errors.ModelError, mark: Mark) -> None:
        serving = self.classifier.bundle.name
        if self.problem is None or mark != self._seen:
            log.error("model refused", model=name, reason=str(error), serving=serving)
        self._seen = mark
        self.problem = f"{name} was refused, {serving} goes on serving: {error}"
