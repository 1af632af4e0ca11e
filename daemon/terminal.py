"""What a person sees: tables, a progress bar, a few coloured lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.table import Table

from daemon.checks import Finding
from daemon.filing import Filed
from daemon.inbox import files_below
from daemon.journal import Tally
from daemon.logs import readable
from daemon.returning import Returned
from daemon.status import skipped_folders
from pawsort.config import Settings
from pawsort.ledger import Row


class Progress:
    """A progress bar over the inbox on stderr, when that is a terminal. `print_moves`: tell each move on stdout."""

    def __init__(self, settings: Settings, *, print_moves: bool) -> None:
        self._settings = settings
        self._print_moves = print_moves
        self._bar: RichProgress | None = None
        self._started = 0.0
        self._done = 0

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            settings = self._settings
            skip = skipped_folders(settings)
            total = sum(1 for _ in files_below(settings.inbox, recursive=settings.recursive, skip=skip))
            self._bar = RichProgress(
                SpinnerColumn(),
                TextColumn("sorting"),
                BarColumn(),
                MofNCompleteColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[rate]:.0f} photos/s"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task("sorting", total=total, rate=0.0)
            self._bar.start()
        self._started = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, filed: Sequence[Filed]) -> None:
        """A batch was filed."""
        self._done += len(filed)
        if self._print_moves:
            for photo in filed:
                sys.stdout.write(_move(photo) + "\n")
        if self._bar is not None:
            rate = self._done / max(time.monotonic() - self._started, 1e-9)
            self._bar.update(self._task, advance=len(filed), rate=rate)


def print_summary(tally: Tally, *, dry_run: bool) -> None:
    """What a run did."""
    table = Table(title="what would be done" if dry_run else None)
    table.add_column("outcome")
    table.add_column("photos", justify="right")
    for label, count in sorted(tally.sorted.items()):
        table.add_row(escape(f"sorted into {label}"), str(count))
    table.add_row("review", str(tally.review))
    for reason, count in sorted(tally.rejected.items()):
        table.add_row(escape(f"rejected: {reason}"), str(count))
    for reason, count in sorted(tally.left.items()):
        table.add_row(escape(f"left in the inbox: {reason}"), str(count))
    table.add_section()
    rate = f", {tally.total / tally.seconds:.0f} photos/s" if tally.seconds and tally.total else ""
    table.add_row("[bold]all[/bold]", f"[bold]{tally.total}[/bold]")
    console = Console()
    console.print(table)
    console.print(f"{tally.seconds:.1f} s{rate}", highlight=False)
    for key, problem in tally.problems.items():
        console.print(f"[red]{escape(key)}: {escape(problem)}[/red]", highlight=False)


def print_check(settings: Settings, findings: Sequence[Finding]) -> None:
    """The settings in force, and what `check` found."""
    console = Console()
    table = Table(title="settings in force", title_justify="left")
    table.add_column("key")
    table.add_column("value", overflow="fold")
    for key, value in _flat(settings.model_dump(mode="json")):
        table.add_row(escape(key), escape("" if value is None else str(value)))
    console.print(table)
    table = Table(title="usable?", title_justify="left")
    for column in ("", "what", "value", "detail"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        mark = "[green]yes[/green]" if finding.usable else "[red]NO[/red]"
        table.add_row(mark, finding.what, escape(finding.value), escape(finding.detail))
    console.print(table)


def print_status(report: Mapping[str, Any]) -> None:
    """A few lines about how things stand, and a hint when something is wrong."""
    console = Console(highlight=False)
    console.print(_condition(report))
    for key, problem in report["degraded"].items():
        console.print(f"  [red]{escape(key)}[/red]  {escape(problem)}")
    age = report["model_age_s"]
    made = f", made {_duration(age)} ago" if age is not None else ""
    console.print(f"model    {escape(str(report['model']))} on {report['engine']}{made}")
    if report["watch"]:
        console.print(f"watching {escape(report['watch'])}")
    if report["last_rescan"]:
        ago = _duration(max(time.time() - report["last_rescan"], 0.0))
        told = f"rescan   {ago} ago ({report['last_rescan_reason']}); {report['recovered_by_rescan']}"
        console.print(f"{escape(told)} found that no event had told of")
    _print_counts(console, report)
    if report["last_photo"]:
        console.print(f"last     {escape(report['last_photo'])}")
    for disk in report["disks"]:
        colour = "red" if disk["nearly_full"] else "default"
        room = f"[{colour}]{decimal(disk['free_bytes'])} left[/{colour}] of {decimal(disk['total_bytes'])}"
        console.print(f"disk     {room}: {escape(disk['folder'])}", soft_wrap=True)
    for hint in report["hints"]:
        console.print(f"[yellow]hint[/yellow]     {escape(hint)}", soft_wrap=True)


def _condition(report: Mapping[str, Any]) -> str:
    if not report["running"]:
        return "[yellow]stopped[/yellow]  start it with `pawsort run`"
    if report["degraded"]:
        return f"[red]degraded[/red]  process {report['pid']}"
    word = "[green]ready[/green]" if report["ready"] else "[yellow]starting or stopping[/yellow]"
    return f"{word}  process {report['pid']}"


def _print_counts(console: Console, report: Mapping[str, Any]) -> None:
    oldest = report["oldest_waiting_s"]
    since = f", the oldest for {_duration(oldest)}" if oldest is not None else ""
    console.print(f"backlog  {report['backlog']}{since}")
    for why, count in report["waiting"].items():
        console.print(f"         {count} waiting: {escape(why)}")
    if report["longest_waiting"]:
        console.print(f"         longest: {escape(report['longest_waiting'])}")
    labels = ", ".join(f"{label} {count}" for label, count in sorted(report["by_label"].items()))
    console.print(f"sorted   {report['sorted']}" + (f"  ({escape(labels)})" if labels else ""))
    for outcome in ("review", "rejected"):
        waiting = report[f"{outcome}_waiting"]
        console.print(f"{outcome:8} {report[outcome]}" + (f"  ({waiting} to look at)" if waiting else ""))
    lately = ", ".join(f"{count} in the last {period}" for period, count in report["filed_last"].items())
    console.print(f"lately   {lately}")


def print_rows(rows: Sequence[Row]) -> None:
    """All that the ledger knows about some photos."""
    console = Console(highlight=False)
    for row in rows:
        console.print(
            f"[bold]#{row.id}  {escape(readable(row.source.name))}[/bold]  {row.event} ({row.state})"
        )
        facts: dict[str, object] = {
            "from": readable(row.source),
            "to": readable(row.destination),
            "when": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row.filed_at or row.decided_at)),
            "model": row.model,
            "label": row.label,
            "reason": row.reason,
            "sha256": row.sha256,
            "size": f"{row.bytes} bytes" + (f", {row.width} x {row.height}" if row.width else ""),
        }
        for key, value in facts.items():
            if value is not None:
                console.print(f"  {key:<12}{escape(str(value))}", soft_wrap=True)
        for label, probability in sorted((row.probabilities or {}).items(), key=lambda item: -item[1]):
            bar = "█" * round(probability * 30)
            console.print(f"  {probability:>10.4f}  {bar:<30} {escape(label)}")


def print_returned(returned: Returned) -> None:
    """What `undo` and `retry` did."""
    console = Console(highlight=False)
    for row, target in returned.back:
        was = f"  (was {row.label or row.event})" if row is not None else ""
        console.print(escape(f"{readable(target.name)} is back in the inbox{was}"), soft_wrap=True)
    for path, reason in returned.left:
        console.print(
            f"[yellow]{escape(readable(path))}[/yellow] {escape(reason)}; left alone", soft_wrap=True
        )
    console.print(f"{len(returned.back)} put back, {len(returned.left)} left alone")


def print_models(listing: Sequence[Mapping[str, Any]]) -> None:
    """The models there are."""
    table = Table()
    for column in (
        "name",
        "state",
        "created",
        "parent",
        "right",
        "against the one before",
        "classes",
    ):
        table.add_column(column)
    for entry in listing:
        right, compared = entry["accuracy"], entry["against_the_one_before"]
        table.add_row(
            escape(str(entry["name"])),
            f"[green]{entry['state']}[/green]" if entry["state"] == "current" else str(entry["state"]),
            str(entry["created"] or ""),
            escape(str(entry["parent"] or "")),
            "" if right is None else f"{right:.2%}",
            "{accuracy:.2%}, before {before:.2%} (of {n})".format(**compared) if compared else "",
            escape(", ".join(entry["labels"] or ())),
        )
    Console().print(table)


def _move(photo: Filed) -> str:
    verdict = photo.verdict
    sure = f"  ({verdict.confidence:.3f})" if verdict.confidence is not None else ""
    reason = f"  {verdict.reason}" if verdict.reason else ""
    return f"{readable(verdict.path)} -> {readable(photo.destination)}{sure}{reason}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat += _flat(value, f"{prefix}{key}.")
        else:
            flat.append((prefix + key, value))
    return flat


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
