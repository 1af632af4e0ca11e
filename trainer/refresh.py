"""`pawsort-train refresh`: the current model learns from what people did to the sorted photos, and never gets worse.

Reads downward: look whether there is anything new, and if so train from the current model's weights on its own photos
and on those that people labelled, hold the result against the current model, and let the better one serve.

Looking is quick and needs no PyTorch: a timer may ask every hour.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pawsort import bundle, errors
from pawsort.config import Settings
from pawsort.ledger import FILE, Ledger
from pawsort.placements import models_named_since
from pawsort.registry import Registry
from trainer import dataset, origins
from trainer.dataset import Found, Origin
from trainer.listener import Listener

if TYPE_CHECKING:
    from trainer import fit, production

RECORD = "refresh.json"  # what the last refresh learned from, in the folder `state`
LOCK = "refresh.lock"
CACHE = "photos"  # decoded photos, in the folder `state`
EPOCHS = 6  # fewer than a first model takes, for this one starts from it
OLD_SHARE = 0.3  # of the current model's weights in the new one's; see docs/training.md
SPARED_DAYS = 30.0  # models that decided about a photo within these are not pruned


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What there is to learn from."""

    champion: Path  # folder of the current model
    manifest: Mapping[str, Any]  # its bundle.json
    folders: tuple[Path, ...]  # base data
    found: tuple[Found, ...]  # all photos: base data and sorted
    origins: Mapping[str, int]  # photos below `sorted`, by origin
    notes: tuple[str, ...]  # what a person should know
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a refresh: "nothing new", "published" or "refused"."""

    outcome: str
    champion: str
    origins: Mapping[str, int]
    notes: tuple[str, ...]
    made: production.Made | None = None
    removed: tuple[str, ...] = ()

    @property
    def gate(self) -> Mapping[str, Any]:
        """What the gate said, as in bundle.json; empty where there was nothing to say."""
        verdict: Mapping[str, Any] = self.made.bundle.manifest["gate"] if self.made else {}
        return verdict

    def document(self) -> dict[str, Any]:
        """As `refresh --json` prints it."""
        told: dict[str, Any] = {
            "outcome": self.outcome,
            "champion": self.champion,
            "origins": dict(self.origins),
            "notes": list(self.notes),
        }
        if self.made is not None:
            told |= self.made.document()
            told["gate"] = dict(self.gate)
            told["removed"] = list(self.removed)
        return told

    def told(self) -> str:
        """For a person."""
        if self.made is None:
            if not sum(count for origin, count in self.origins.items() if origin != Origin.PREDICTED):
                return "nothing to learn from: nobody has placed, moved or confirmed a sorted photo yet"
            return f"nothing new since the last refresh; {self.champion} goes on serving"
        gate, name = self.gate, self.made.bundle.name
        report = self.made.bundle.path / bundle.REPORT
        accuracy = gate["accuracy"]
        lines = [
            f"{name} against {self.champion} on {gate['n']} held-out photos:",
            f"  {accuracy['challenger']:.2%} right, before {accuracy['champion']:.2%}",
            f"  {gate['fixed']} fixed, {gate['broken']} broken (p = {gate['p_value']:.3g})",
            *(f"  {reason}" for reason in gate["reasons"]),
        ]
        if gate["passed"]:
            lines.append(f"{name} serves now; `pawsort models rollback` brings {self.champion} back")
        elif gate["forced"]:
            lines.append(f"{name} serves all the same, because of --force")
        else:
            lines.append(f"{name} is refused, and {self.champion} goes on serving")
        if self.removed:
            lines.append(f"old models removed: {', '.join(self.removed)}")
        return "\n".join([*lines, f"look at {report}"])


def refresh(
    settings: Settings,
    name: str,
    listener: Listener,
    stop: Callable[[], bool] = lambda: False,
    *,
    force: bool = False,
) -> Outcome:
    """Make the model `name` out of the current one and what is new, and let it serve if it is no worse.

    `force` does so even if nothing is new, and even if it is worse; both are recorded. Raises DataError, ModelError,
    LedgerError, or PawsortError when another refresh is at work or `stop` ended this one.
    """
    with _alone(settings.state):
        plan = look(settings)
        last = _last(settings.state)
        champion = str(plan.manifest.get("name", plan.champion.name))
        learnable = sum(count for origin, count in plan.origins.items() if origin != Origin.PREDICTED)
        nothing = plan.fingerprint == last.get("fingerprint") or (not last and not learnable)
        if nothing and not force:
            return Outcome(outcome="nothing new", champion=champion, origins=plan.origins, notes=plan.notes)
        for note in plan.notes:
            listener.note(note)
        made = _learn(settings, plan, name, listener, stop, force=force)
        removed = Registry(settings.models).prune(settings.trainer.keep_models, _spared(settings))
        outcome = "published" if made.made_current else "refused"
        _write(settings.state, {"fingerprint": plan.fingerprint, "model": name, "outcome": outcome})
        return Outcome(
            outcome=outcome,
            champion=champion,
            origins=plan.origins,
            notes=plan.notes,
            made=made,
            removed=tuple(removed),
        )


def look(settings: Settings) -> Plan:
    """Find out what there is to learn from, and record what people said. Raises DataError, ModelError, LedgerError."""
    trainer = settings.trainer
    survey = _survey(settings)
    champion = Registry(settings.models).current()
    manifest = bundle.read_manifest(champion)
    for folder in trainer.data:
        if folder.resolve().is_relative_to(settings.sorted.resolve()):
            raise errors.DataError(
                f"trainer.data: {folder} is in `sorted`, which is learned from anyway, without what the daemon "
                "guessed; remove it from trainer.data"
            )
    folders = trainer.data or _own_folders(settings, manifest)
    base = dataset.find(folders, least_classes=1) if folders else []

    people = survey.labelled_by_people()
    known = {*manifest["labels"], *(photo.label for photo in base)}
    counts = Counter(photo.label for photo in people)
    small = {label for label, count in counts.items() if label not in known and count < trainer.min_photos}
    chosen = [*people, *survey.trusted(trainer.trust_after_days, time.time())]
    chosen = [photo for photo in chosen if photo.label not in small]
    # A guess at a class that no person has given a single photo is no class of its own.
    chosen = [photo for photo in chosen if photo.label in known or counts[photo.label]]
    found = [
        *base,
        *(Found(path=p.path, label=p.label, origin=p.origin, sha256=p.sha256) for p in chosen),
    ]
    by_origin = Counter(photo.origin.value for photo in survey.photos)
    return Plan(
        champion=champion,
        manifest=manifest,
        folders=folders,
        found=tuple(found),
        origins={origin.value: by_origin[origin.value] for origin in Origin},
        notes=tuple(_notes(settings, survey, counts, small)),
        fingerprint=_fingerprint(chosen, base),
    )


# -- Training ---------------------------------------------------------------------------------------


def _learn(
    settings: Settings,
    plan: Plan,
    name: str,
    listener: Listener,
    stop: Callable[[], bool],
    *,
    force: bool,
) -> production.Made:
    _check_classes(plan)
    if settings.trainer.nice:
        _step_back(listener)
    from pawsort import classifier, image, machine
    from trainer import calibrate, evaluate, fit, gate, production

    shelf = Registry(settings.models)
    limits = image.Limits(**settings.limits.model_dump())
    chosen = plan.manifest["decision"].get("chosen", {})
    order = production.Order(
        data=plan.folders,
        found=plan.found,
        other=settings.trainer.other,
        init="current",
        models=settings.models,
        name=name,
        recipe=_recipe(plan, settings.trainer.epochs),
        size=int(plan.manifest["input"]["size"]),
        seed=settings.trainer.seed,
        cache=settings.state / CACHE,
        cache_is_own=True,
        # Idle priority alone leaves a daemon on a busy core waiting for a core's share of a batch: one is left to it.
        threads=max(machine.usable_cores() - 1, 1) if settings.trainer.nice else None,
        workers=settings.decoders,
        limits=limits,
        target_precision=chosen.get("target_precision", calibrate.TARGET_PRECISION),
    )

    def pass_gate(examples: Sequence[dataset.Example], tested: Sequence[evaluate.Judged]) -> gate.Verdict:
        old = evaluate.judge(
            classifier.open_classifier(plan.champion, kind="openvino"),
            [example.path for example in examples],
            [example.label for example in examples],
            limits=limits,
            workers=order.workers,
            progress=listener.counted,
        )
        verdict = gate.hold(
            str(plan.manifest["name"]),
            old.photos,
            tested,
            examples,
            max_recall_loss=settings.trainer.max_recall_loss,
            forced=force,
        )
        if shelf.current() != plan.champion:
            reason = f"{shelf.current().name} was made current meanwhile"
            verdict = replace(verdict, reasons=(*verdict.reasons, reason))
        if verdict.serves:
            shelf.hold_current()
        return verdict

    try:
        return production.make(order, listener, stop, pass_gate)
    except fit.InterruptedFit as error:
        (settings.models / production.CHECKPOINTS / f"{name}.pt").unlink(missing_ok=True)
        current = plan.manifest["name"]
        raise errors.PawsortError(f"stopped; {current} goes on serving, and nothing was changed") from error


def _recipe(plan: Plan, epochs: int | None) -> fit.Recipe:
    """The recipe that the current model was made with, for so many epochs; where it is not told, the usual one."""
    from trainer import augment, fit

    told = dict(plan.manifest.get("training", {}).get("recipe", {}))
    pictures = told.pop("augmentation", {})
    usual = fit.Recipe()
    known = {field.name: told[field.name] for field in fields(usual) if field.name in told}
    known["epochs"] = epochs or EPOCHS
    known["least_steps"] = 0 if epochs else usual.least_steps
    # Part of the way to a new class, a model does not know it yet.
    same_classes = {photo.label for photo in plan.found} == {*plan.manifest["labels"]}
    known["old_share"] = OLD_SHARE if same_classes else 0.0
    known["augmentation"] = augment.Augmentation(
        **{f.name: pictures[f.name] for f in fields(usual.augmentation) if f.name in pictures}
    )
    return replace(usual, **known)


def _check_classes(plan: Plan) -> None:
    """A class that the current model knows must not be forgotten because its photos are elsewhere."""
    counts = Counter(photo.label for photo in plan.found if photo.origin is not Origin.PREDICTED)
    for label in plan.manifest["labels"]:
        if counts[label] < dataset.LEAST_PHOTOS:
            raise errors.DataError(
                f"class {label!r}: {plan.manifest['name']} knows it, and there are {counts[label]} photos of it to "
                f"learn from (it takes {dataset.LEAST_PHOTOS}); name the folders that the model was made from under "
                "trainer.data in the settings, or look through the sorted photos and run `pawsort confirm`"
            )


def _step_back(listener: Listener) -> None:
    """Let everybody else have the processor first. Threads and processes that are started from now on inherit it."""
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except OSError as error:
        listener.note(f"trainer.nice: idle priority cannot be had here ({error.strerror}); going on without")


# -- Looking ----------------------------------------------------------------------------------------


def _survey(settings: Settings) -> origins.Survey:
    file = settings.state / FILE
    if not file.exists():
        return origins.survey(settings.sorted, None, settings.state)
    with Ledger(file, read_only=True) as ledger:
        survey = origins.survey(settings.sorted, ledger, settings.state)
    if survey.news:
        with Ledger(file) as ledger:
            origins.record(ledger, survey)
    return survey


def _own_folders(settings: Settings, manifest: Mapping[str, Any]) -> tuple[Path, ...]:
    """The folders that the current model was made from, those that still exist; `sorted` is looked at anyway."""
    told = manifest.get("data", {}).get("folders", ())
    folders = [Path(os.path.abspath(settings.models / folder)) for folder in told]
    return tuple(
        folder
        for folder in folders
        if folder.is_dir() and not folder.resolve().is_relative_to(settings.sorted.resolve())
    )


def _notes(
    settings: Settings, survey: origins.Survey, counts: Mapping[str, int], small: set[str]
) -> Iterator[str]:
    for label in sorted(small):
        yield (
            f"{settings.sorted / label}: {counts[label]} photos are too few for a class of its own "
            f"(trainer.min_photos is {settings.trainer.min_photos}); left out"
        )
    for paths in survey.contradicted:
        told = ", ".join(str(path) for path in paths)
        yield f"the same photo lies in two class folders, put there by people; left out: {told}"
    for photo in survey.overruled:
        yield f"{photo.path}: counts as {photo.label!r}, where a person had put the same photo before"
    for path in survey.unreadable:
        yield f"{path}: cannot be read; left out"


def _fingerprint(chosen: Sequence[origins.Labelled], base: Sequence[Found]) -> str:
    """A hash of all that would be learned from: people's photos by content, base data by name, size and time."""
    lines = [f"{photo.sha256} {photo.label} {photo.origin}" for photo in chosen]
    for photo in base:
        try:
            status = photo.path.stat()
        except OSError:
            continue
        lines.append(f"{photo.path!r} {status.st_size} {status.st_mtime_ns}")
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _spared(settings: Settings) -> set[str]:
    file = settings.state / FILE
    if not file.exists():
        return set()
    with Ledger(file, read_only=True) as ledger:
        return models_named_since(ledger, SPARED_DAYS)


# -- One at a time, and what the last one did -------------------------------------------------------


@contextmanager
def _alone(state: Path) -> Iterator[None]:
    """Hold the lock; raises PawsortError when another refresh does."""
    state.mkdir(parents=True, exist_ok=True)
    with (state / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise errors.PawsortError(f"{state / LOCK}: another refresh is at work; let it finish") from None
        yield


def _last(state: Path) -> dict[str, Any]:
    try:
        last: dict[str, Any] = json.loads((state / RECORD).read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise errors.DataError(f"{state / RECORD}: cannot be read ({error}); delete it") from error
    return last


def _write(state: Path, record: Mapping[str, Any]) -> None:
    temporary = state / f".{RECORD}.part"
    temporary.write_text(json.dumps(record, indent=1), encoding="utf-8")
    temporary.replace(state / RECORD)
