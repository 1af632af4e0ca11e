"""The programs of a service: an environment of its own, so that nothing else on the machine changes what it runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from daemon import units
from daemon.units import Flavour
from pawsort import __version__, errors

MARK: Final = ".made-by-pawsort"  # in an environment that was made here, and that may therefore be removed

Say = Callable[[str], None]


def make_environment(flavour: Flavour, prefix: Path, wanted: str | None, say: Say, *, retrain: bool) -> None:
    """Make the environment `prefix`, or bring it up to date, by pip. Raises ConfigError or MachineError."""
    if Path(sys.prefix).resolve() == prefix.resolve() and wanted is None:
        return  # we are the installed ones: only settings and units are brought up to date
    if prefix.exists() and any(prefix.iterdir()) and not (prefix / MARK).exists():
        raise errors.ConfigError(f"{prefix}: is not empty, and not ours; choose another with --prefix")
    wanted = wanted or _own_source()
    extras = "heic,train" if retrain else "heic"
    target = (
        f"{wanted}[{extras}]" if Path(wanted).exists() else re.sub(r"^([\w.-]+)", rf"\1[{extras}]", wanted)
    )
    say(f"installing {target} into {prefix} ...")
    python = prefix / "bin" / "python"
    if not python.exists():
        base = _python(flavour)
        run(
            [base, "-c", "import ensurepip, venv"],
            remedy="on Debian and Ubuntu: apt-get install python3-venv",
        )
        prefix.mkdir(parents=True, exist_ok=True)
        (prefix / MARK).touch()
        run([base, "-m", "venv", prefix])
    pip: list[str | Path] = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run([*pip, target])
    # pip takes the same version for the same thing; it may be a newer build.
    run([*pip, "--force-reinstall", "--no-deps", wanted])


def _own_source() -> str:
    """What this program was installed from, as pip recorded it (PEP 610), or this version from the package index."""
    recorded = metadata.distribution("pawsort").read_text("direct_url.json")
    if recorded is None:
        return f"pawsort=={__version__}"
    parts = urlsplit(json.loads(recorded)["url"])
    if parts.scheme != "file":
        return f"pawsort @ {parts.geturl()}"
    path = unquote(parts.path)
    if not os.path.exists(path):
        raise errors.ConfigError(
            f"{path}: pawsort was installed from here, and it is gone; name a wheel or a folder with --from"
        )
    return path


def _python(flavour: Flavour) -> str:
    """A Python for the prefix: this one, unless the service could not see it."""
    named = [
        shutil.which(name, path=os.defpath) for name in ("python3", "python3.11", "python3.12", "python3.13")
    ]
    # What this environment was made with, as venv knows it.
    this: str = sys._base_executable  # type: ignore[attr-defined]  # noqa: SLF001
    found = [this, *(path for path in named if path)]
    for path in found:
        real = Path(os.path.realpath(path))
        if flavour == "system" and any(real.is_relative_to(home) for home in units.HOMES):
            continue
        wanted = "import sys; sys.exit(sys.version_info < (3, 11))"
        if subprocess.run([path, "-c", wanted], check=False, capture_output=True).returncode == 0:
            return path
    raise errors.MachineError(
        "no Python 3.11 or newer outside of home folders, into which a service of the machine does not see; "
        "install one (on Debian and Ubuntu: apt-get install python3-venv)"
    )


def run(command: Sequence[str | Path], *, remedy: str = "") -> None:
    """Run a program to its end. Raises MachineError when it fails, with what it said and the remedy."""
    shortly = " ".join(str(part) for part in command)
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise errors.MachineError(f"{command[0]}: there is no such program on this machine") from error
    if answer.returncode:
        said = (answer.stderr.strip() or answer.stdout.strip())[-2000:]
        raise errors.MachineError("\n".join(part for part in (f"`{shortly}` failed: {said}", remedy) if part))
