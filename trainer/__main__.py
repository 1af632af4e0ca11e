"""Command line `pawsort-train`: fit, refresh, evaluate. It parses and prints; the library does the work.

Exit codes: 0 done, 1 failed while running, 2 the call or the data is wrong, 3 the gate kept the old model.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

import pawsort
from pawsort import errors

if TYPE_CHECKING:
    from pawsort import engine as engines
    from trainer import fit as training
    from trainer.reading import Skipped

FAILED, WRONG_CALL, REFUSED = 1, 2, 3
_FOLDER = click.Path(path_type=Path)

_DATA = click.option(
    "--data",
    type=_FOLDER,
    multiple=True,
    required=True,
    help="Folder with one folder of photos a class; may be repeated.",
)
_OTHER = click.option(
    "--other", type=_FOLDER, help="Folder of photos of no class, to measure how well those are noticed."
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(pawsort.__version__, prog_name="pawsort-train")
def main() -> None:
    """Learn to tell photos apart from folders of them; each folder is a class."""


@main.command()
@_DATA
@_OTHER
@click.option(
    "--init",
    default="imagenet",
    show_default=True,
    metavar="imagenet|current|PATH",
    help="Weights to start from.",
)
@click.option(
    "--out", "models", type=_FOLDER, default=Path("models"), show_default=True, help="Models folder."
)
@click.option("--name", help="Name of the new model.  [default: by date and time]")
@click.option(
    "--epochs",
    type=click.IntRange(min=1),
    help="Times to go through the photos.  [default: 16, with --quick 6, and more where photos are few]",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Decides every random choice."
)
@click.option(
    "--device", default="auto", show_default=True, metavar="auto|cpu|cuda", help="What to train on."
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="Threads to compute with; fewer are faster on a busy machine.  [default: one a core]",
)
@click.option("--quick", is_flag=True, help="A short run, for a first look: a few minutes on two cores.")
@click.option(
    "--resume", is_flag=True, help="Go on with the interrupted run of that --name (else the latest)."
)
@click.option(
    "--size", type=click.IntRange(min=32), hidden=True, help="Side of the pictures the model sees, pixels."
)
@click.option(
    "--target-precision",
    type=click.FloatRange(0.5, 0.9999),
    default=0.995,
    show_default=True,
    help="Share of the photos sorted unasked that shall be right.",
)
@click.option(
    "--cache", type=_FOLDER, help="Folder for decoded photos.  [default: pawsort in the user's cache folder]"
)
@click.option(
    "--report-photos/--no-report-photos", default=True, show_default=True, help="Show photos in report.html."
)
@_JSON
def fit(
    data: tuple[Path, ...],
    other: Path | None,
    init: str,
    models: Path,
    name: str | None,
    epochs: int | None,
    seed: int,
    device: str,
    quick: bool,
    resume: bool,
    threads: int | None,
    size: int | None,
    target_precision: float,
    cache: Path | None,
    report_photos: bool,
    as_json: bool,
) -> None:
    """Train a model and put it into the models folder."""
    with _exit_codes():
        from trainer import fit as training
        from trainer import production

        recipe = training.QUICK if quick else training.Recipe()
        if epochs is not None:
            recipe = dataclasses.replace(recipe, epochs=epochs, least_steps=0)
        order = production.Order(
            data=data,
            other=other,
            init=init,
            models=models,
            name=name or (production.interrupted(models) if resume else _dated_name(models)),
            recipe=recipe,
            seed=seed,
            device=device,
            resume=resume,
            threads=threads,
            target_precision=target_precision,
            cache=cache or default_cache(),
            report_photos=report_photos,
            size=size or (production.QUICK_SIZE if quick else production.SIZE),
        )
        with _Screen() as screen, _stop_on_interrupt() as stopped:
            made = production.make(order, screen, lambda: bool(stopped))
        _tell_skipped(made.skipped)
        if as_json:
            click.echo(json.dumps(made.document(), indent=2, ensure_ascii=False))
            return
        _print_metrics(made.bundle.name, made.metrics)
        screen.console.print(
            f"{made.bundle.path}: made in {made.seconds:.0f} s; look at {made.bundle.path / 'report.html'}"
        )
        if not made.made_current:
            screen.console.print(f"To let it serve: pawsort models use {made.bundle.name}")


@main.command()
@click.option(
    "--config",
    "config_file",
    type=_FOLDER,
    default=Path("config.yaml"),
    show_default=True,
    help="The settings.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Train even if nothing is new, and let the new model serve even if it is worse; this is recorded.",
)
@_JSON
def refresh(config_file: Path, force: bool, as_json: bool) -> None:
    """Learn from the sorted photos that people moved, placed or confirmed; the better model serves.

    Exit code 3: the new model is worse, and the old one goes on serving.
    """
    with _exit_codes():
        from pawsort import config
        from trainer import refresh as refreshing

        settings = config.load(config_file)
        with _Screen() as screen, _stop_on_interrupt() as stopped:
            outcome = refreshing.refresh(
                settings, _dated_name(settings.models), screen, lambda: bool(stopped), force=force
            )
        if as_json:
            click.echo(json.dumps(outcome.document(), indent=2, ensure_ascii=False))
        else:
            click.echo(outcome.told())
        if outcome.outcome == "refused":
            sys.exit(REFUSED)


@main.command()
@_DATA
@click.option(
    "--model",
    default="current",
    show_default=True,
    metavar="NAME|PATH",
    help="A model in the models folder, or its folder.",
)
@click.option("--models", type=_FOLDER, default=Path("models"), show_default=True, help="Models folder.")
@_OTHER
@click.option("--engine", type=click.Choice(["auto", "openvino", "torch"]), default="auto", show_default=True)
@click.option("--unseen", is_flag=True, help="Leave out photos that the model was trained on.")
@_JSON
def evaluate(
    data: tuple[Path, ...],
    model: str,
    models: Path,
    other: Path | None,
    engine: engines.Kind,
    unseen: bool,
    as_json: bool,
) -> None:
    """Measure a model on photos whose class is known, as the daemon would decide about them."""
    with _exit_codes():
        from trainer import examination

        with _Screen() as screen:
            document, skipped = examination.examine(
                data, model, models, other, kind=engine, unseen=unseen, listener=screen
            )
        _tell_skipped(skipped)
        if as_json:
            click.echo(json.dumps(document, indent=2, ensure_ascii=False))
        else:
            _print_metrics(document["model"], document)


# -- What a person sees -----------------------------------------------------------------------------


class _Screen:
    """Stages and a progress bar on stderr; plain lines where that is no terminal. A context manager."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}"), TimeElapsedColumn(),
            console=self.console, disable=not self.console.is_terminal,
        )  # fmt: skip
        self._task: TaskID | None = None
        self._epoch = 0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def stage(self, title: str) -> None:
        """See production.Listener."""
        if self._task is not None:
            task = self._progress.tasks[self._progress.task_ids.index(self._task)]
            self._progress.update(self._task, total=task.total or 1, completed=task.total or 1)
        self._task = self._progress.add_task(title, total=None, told="")
        if not self.console.is_terminal:
            self.console.print(title)

    def counted(self, done: int, total: int) -> None:
        """See production.Listener."""
        if self._task is not None:
            self._progress.update(self._task, completed=done, total=total, told=f"{done}/{total}")

    def trained(self, progress: training.Progress) -> None:
        """See production.Listener."""
        minutes, seconds = divmod(round(progress.seconds_left), 60)
        told = (
            f"epoch {progress.epoch}/{progress.epochs}  loss {progress.loss:.3f}  accuracy {progress.accuracy:.1%}  "
            f"{progress.photos_per_second:.0f} photos/s  {minutes}:{seconds:02d} left"
        )
        if progress.validation is not None:
            told += f"  validation {progress.validation:.2%}"
        assert self._task is not None
        self._progress.update(self._task, completed=progress.step, total=progress.steps, told=told)
        ended = progress.step * progress.epochs % progress.steps == 0
        if ended and not self.console.is_terminal:
            self.console.print(told, soft_wrap=True)

    def note(self, text: str) -> None:
        """See production.Listener."""
        self.console.print(text, soft_wrap=True, markup=False)


def _print_metrics(name: str, metrics: Mapping[str, Any]) -> None:
    table = Table(title=f"{name}: {metrics['n']} photos", title_justify="left")
    for column in ("class", "photos", "recall", "precision"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for label, row in metrics["per_class"].items():
        table.add_row(label, str(row["n"]), _percent(row["recall"]), _percent(row["precision"]))
    console = Console(highlight=False)
    console.print(table)
    lines = [
        ("accuracy", _percent(metrics["accuracy"])),
        (
            "sorted without asking",
            f"{_percent(metrics['auto_sorted'])}, of those right {_percent(metrics['auto_sorted_precision'])}",
        ),
        ("calibration error", f"{metrics['ece']:.4f}"),
    ]
    if "other_auroc" in metrics:
        auroc = "–" if metrics["other_auroc"] is None else f"{metrics['other_auroc']:.4f}"
        lines.append(
            ("photos of no class", f"AUROC {auroc}, sorted {_percent(metrics['other_auto_sorted'])}")
        )
    for what, figure in lines:
        console.print(f"{what:24}{figure}")


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.2%}"


def _tell_skipped(skipped: Sequence[Skipped]) -> None:
    if not skipped:
        return
    click.echo(f"{len(skipped)} files skipped:", err=True)
    for photo in skipped:
        name = str(photo.path).encode(errors="backslashreplace").decode()
        click.echo(f"  {name}: {photo.message.splitlines()[0]}", err=True)


# -- Names, signals, exit codes ---------------------------------------------------------------------


def default_cache() -> Path:
    """Where decoded photos are kept unless told otherwise (XDG Base Directory Specification)."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "pawsort"


def _dated_name(models: Path) -> str:
    stem = dt.datetime.now().astimezone().strftime("model-%Y%m%d-%H%M%S")
    number = 1
    while (models / (name := stem if number == 1 else f"{stem}-{number}")).exists():
        number += 1
    return name


@contextmanager
def _stop_on_interrupt() -> Iterator[list[int]]:
    """A list that the first SIGINT or SIGTERM makes true; the second one interrupts at once. Handlers are put back."""
    received: list[int] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _exit_codes() -> Iterator[None]:
    """Turn what the library raises into a line on stderr and an exit code."""
    try:
        yield
    except (errors.DataError, errors.ConfigError) as error:
        click.echo(f"pawsort-train: {error}", err=True)
        sys.exit(WRONG_CALL)
    except errors.PawsortError as error:
        click.echo(f"pawsort-train: {error}", err=True)
        sys.exit(FAILED)
    except ImportError as error:
        click.echo(f"pawsort-train: {error}; the trainer needs: pip install 'pawsort[train]'", err=True)
        sys.exit(FAILED)
    except KeyboardInterrupt:
        click.echo("pawsort-train: interrupted", err=True)
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
