"""Command line `pawsort`. It parses and prints; the work is done elsewhere, and imported only by those who need it."""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import click

from pawsort import __version__, errors

if TYPE_CHECKING:
    from pawsort.config import Settings

# NumPy's threads would help none of its small products here, and spin for a while after each: that took a third of the
# processor from decoding and inference. NumPy reads this once, when it is first imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

P = ParamSpec("P")
R = TypeVar("R")

FAILED = 1  # exit code: failed while running
WRONG_CALL = 2  # exit code: the call or the configuration is wrong

config_option = click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    default=Path("config.yaml"),
    show_default=True,
    help="The settings.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")


@contextmanager
def _exit_codes() -> Iterator[None]:
    """Errors that pawsort raises on purpose -> a message without a traceback, and an exit code by cause."""
    try:
        yield
    except errors.ConfigError as error:
        for problem in error.problems:
            click.echo(problem, err=True)
        sys.exit(WRONG_CALL)
    except errors.ModelError as error:
        click.echo(str(error), err=True)
        sys.exit(WRONG_CALL)
    except (errors.PawsortError, OSError) as error:
        click.echo(str(error), err=True)
        sys.exit(FAILED)


def _with_exit_codes(command: Callable[P, R]) -> Callable[P, R]:
    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with _exit_codes():
            return command(*args, **kwargs)

    return wrapped


@contextmanager
def _last_words() -> Iterator[None]:
    """Whatever ends a run before its time stands in the log, a mistake of ours with its traceback."""
    import structlog

    log = structlog.get_logger()
    try:
        yield
    except errors.ModelError as error:
        log.error("failed", reason=str(error))  # noqa: TRY400  expected: the reason says it all
        sys.exit(WRONG_CALL)
    except (errors.PawsortError, OSError) as error:
        log.error("failed", reason=str(error))  # noqa: TRY400  expected: the reason says it all
        sys.exit(FAILED)
    except Exception:
        log.exception("crashed")
        sys.exit(FAILED)


def _load(config_file: Path) -> Settings:
    from pawsort import config

    return config.load(config_file)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pawsort")
def main() -> None:
    """Watch a folder, recognise each new photo and move it into the folder of its class."""


@main.command()
@config_option
@click.option("--once", is_flag=True, help="Sort what is there, print a summary, and exit.")
@click.option("--dry-run", is_flag=True, help="Move nothing; print where each photo would go, and exit.")
@_with_exit_codes
def run(config_file: Path, *, once: bool, dry_run: bool) -> None:
    """Sort what is in the inbox, then watch it."""
    # A crash in native code, or the service manager's SIGABRT to a daemon that is stuck, then leaves a traceback.
    faulthandler.enable()
    settings = _load(config_file)
    from daemon import logs
    from daemon.service import Service

    logs.set_up(settings.log)
    if not once and not dry_run:
        with _last_words():
            Service(settings).run()
        return
    from daemon import terminal

    with _last_words(), terminal.Progress(settings, print_moves=dry_run) as progress:
        tally = Service(settings, once=True, dry_run=dry_run, on_filed=progress.advance).run()
    terminal.print_summary(tally, dry_run=dry_run)
    if tally.problems:
        sys.exit(FAILED)


@main.command()
@config_option
@json_option
@_with_exit_codes
def check(config_file: Path, *, as_json: bool) -> None:
    """Print the settings in force, and whether folders, model and engine can be used."""
    settings = _load(config_file)
    from daemon import checks, terminal

    findings = checks.examine(settings)
    if as_json:
        _print_json(checks.as_document(settings, findings))
    else:
        terminal.print_check(settings, findings)
    if not all(finding.usable for finding in findings):
        sys.exit(WRONG_CALL)


@main.command()
@config_option
@json_option
@_with_exit_codes
def status(config_file: Path, *, as_json: bool) -> None:
    """Say how things stand, whether the daemon runs, is busy, or is stopped."""
    settings = _load(config_file)
    from daemon import status as status_module
    from daemon import terminal

    report = status_module.report(settings)
    if as_json:
        _print_json(report)
    else:
        terminal.print_status(report)


@main.command()
@click.argument("what", metavar="FILE|NAME|SHA256")
@config_option
@json_option
@_with_exit_codes
def show(what: str, config_file: Path, *, as_json: bool) -> None:
    """Show what was decided about a photo: by where it is, by its name, or by its SHA-256 (six digits will do)."""
    settings = _load(config_file)
    from daemon import records, terminal

    rows = records.find(settings, what)
    if not rows:
        click.echo(f"nothing is known of {what}", err=True)
        sys.exit(FAILED)
    if as_json:
        _print_json([records.as_document(row) for row in rows])
    else:
        terminal.print_rows(rows)


@main.command()
@click.argument("what", metavar="[FILE]", required=False)
@click.option("--last", type=click.IntRange(min=1), metavar="N", help="The last N photos that were filed.")
@click.option("--model", metavar="NAME", help="All photos that this model decided about.")
@config_option
@_with_exit_codes
def undo(what: str | None, last: int | None, model: str | None, config_file: Path) -> None:
    """Put photos back into the inbox, those that nobody has moved or changed since."""
    if sum(choice is not None for choice in (what, last, model)) != 1:
        raise click.UsageError("say what to undo: one of FILE, --last N or --model NAME")
    settings = _load(config_file)
    from daemon import records, returning, terminal

    with records.open_ledger(settings) as ledger:
        if last is not None:
            rows = ledger.last(last)
        elif model is not None:
            rows = ledger.filed_by(model)
        else:
            rows = [row for row in records.find(settings, str(what)) if row.state == "done"][:1]
        returned = returning.undo(ledger, settings.inbox, rows)
    terminal.print_returned(returned)
    if not returned.back:
        sys.exit(FAILED)


@main.command()
@config_option
@_with_exit_codes
def retry(config_file: Path) -> None:
    """Send everything in review and rejected through again, with the model that serves now."""
    settings = _load(config_file)
    from daemon import records, returning, terminal

    with records.open_ledger(settings) as ledger:
        returned = returning.retry(ledger, settings.inbox, [settings.review, settings.rejected])
    terminal.print_returned(returned)


@main.command()
@click.argument("paths", metavar="[FILE|FOLDER]...", nargs=-1, type=click.Path(path_type=Path))
@config_option
@_with_exit_codes
def confirm(paths: tuple[Path, ...], config_file: Path) -> None:
    """Say that photos lie in the right class folder, so that the model may learn from them. Default: all."""
    settings = _load(config_file)
    from daemon import records

    with records.open_ledger(settings) as ledger:
        count = records.confirm(ledger, settings, paths)
    click.echo(f"{count} photos confirmed")


@main.command()
@click.argument("action", type=click.Choice(["list", "use", "rollback"]), default="list")
@click.argument("name", required=False)
@config_option
@json_option
@_with_exit_codes
def models(action: str, name: str | None, config_file: Path, *, as_json: bool) -> None:
    """List the models, let the model NAME serve from now on (`use NAME`), or the one before it (`rollback`)."""
    settings = _load(config_file)
    from daemon import terminal
    from pawsort.registry import Registry

    registry = Registry(settings.models)
    if action == "use":
        if name is None:
            raise click.UsageError(
                "`pawsort models use` wants the NAME of a model; `pawsort models` lists them"
            )
        registry.use(name)
        click.echo(f"{name} serves now")
        return
    if action == "rollback":
        click.echo(f"{registry.rollback()} serves now")
        return
    if as_json:
        _print_json(registry.listing())
    else:
        terminal.print_models(registry.listing())


@main.group()
def service() -> None:
    """Let systemd run pawsort: install, show or remove the service of this machine, or with --user one of your own."""


user_option = click.option(
    "--user", "own", is_flag=True, help="A service of your own, for which nobody needs root."
)
service_config_option = click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    help="The settings; left out, the usual place, where they are made when missing.",
)
program_option = click.option(
    "--program",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A pawsort that is installed already and is to serve; nothing is installed then.",
)


@service.command()
@user_option
@service_config_option
@program_option
@click.option("--prefix", type=click.Path(path_type=Path), help="The folder that pawsort is installed into.")
@click.option(
    "--from", "wanted", metavar="WHEEL|FOLDER|REQUIREMENT", help="What is installed; left out, this pawsort."
)
@click.option("--retrain", is_flag=True, help="Also learn every night from what people did; takes PyTorch.")
@_with_exit_codes
def install(
    *,
    own: bool,
    config_file: Path | None,
    program: Path | None,
    prefix: Path | None,
    wanted: str | None,
    retrain: bool,
) -> None:
    """Make the service, enable it and start it. Done again, it brings everything up to date."""
    from daemon import installation

    installation.install(
        "user" if own else "system",
        click.echo,
        config_file=config_file,
        prefix=prefix,
        wanted=wanted,
        program=program,
        retrain=retrain,
    )


@service.command("show")
@user_option
@service_config_option
@program_option
@_with_exit_codes
def show_units(*, own: bool, config_file: Path | None, program: Path | None) -> None:
    """Print the units that `install` would write. Changes nothing."""
    from daemon import installation

    units = installation.shown("user" if own else "system", config_file=config_file, program=program)
    for name, text in units.items():
        click.echo(f"# {name}\n{text}")


@service.command()
@user_option
@_with_exit_codes
def remove(*, own: bool) -> None:
    """Stop the service and remove it. Photos, ledger, models and settings stay."""
    from daemon import installation

    installation.remove("user" if own else "system", click.echo)


def _print_json(document: object) -> None:
    json.dump(document, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


if __name__ == "__main__":
    # A pipe that is closed early (`pawsort show x | head`) is no error worth a traceback.
    try:
        main()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
