"""The systemd units: one source for the service of a machine and for that of one person, filled in from the settings.

The sources lie in systemd/ beside the packages; a wheel has them as daemon/units.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pawsort import errors
from pawsort.config import Settings

Flavour = Literal["system", "user"]

SERVICE: Final = "pawsort.service"
RETRAIN: Final = ("pawsort-retrain.service", "pawsort-retrain.timer")
HOMES: Final = ("/home", "/root", "/run/user")  # what ProtectHome= is about (systemd.exec(5))
PRIVATE: Final = ("/tmp", "/var/tmp")  # noqa: S108  what PrivateTmp= is about, named here to be refused
PREFIX_KEY: Final = "X-PawsortPrefix"

_NO_NETWORK: Final = "PrivateNetwork=yes\nIPAddressDeny=any\nRestrictAddressFamilies=AF_UNIX"
_NETWORK: Final = "# For /metrics and /healthz.\nRestrictAddressFamilies=AF_UNIX AF_INET AF_INET6"
_HERE_ONLY: Final = "# They are for programs on this machine.\nIPAddressDeny=any\nIPAddressAllow=localhost"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What the units are filled in with. All paths are absolute."""

    flavour: Flavour
    program: Path  # pawsort; pawsort-train lies beside it
    prefix: Path | None  # the folder that was made for the programs; None: they were there already
    config: Path
    settings: Settings
    account: str = "pawsort"  # user and group of the system's service


def names(*, retrain: bool) -> tuple[str, ...]:
    """File names of the units that belong to an installation."""
    return (SERVICE, *RETRAIN) if retrain else (SERVICE,)


def source(name: str) -> str:
    """A file among the sources: a unit before it is filled in, or the commented settings. Raises MachineError."""
    package = Path(__file__).parent
    for folder in (package / "units", package.parent / "systemd", package.parent):
        file = folder / name
        if file.is_file():
            return file.read_text(encoding="utf-8")
    raise errors.MachineError(f"{package / 'units' / name}: missing; install pawsort again")


def render(name: str, layout: Layout) -> str:
    """The unit `name` for this layout. Raises ConfigError when the service could not reach its folders."""
    settings = layout.settings
    other = "user" if layout.flavour == "system" else "system"
    words = {
        "PAWSORT": _in_command(layout.program),
        "PAWSORT_TRAIN": _in_command(layout.program.with_name("pawsort-train")),
        "CONFIG": _in_command(layout.config),
        "PREFIX": _quoted(layout.prefix) if layout.prefix is not None else "",
        "ACCOUNT": layout.account,
        "FOLDERS": _listed(_without_nested(_folders(settings))),
        "WRITABLE": _listed(writable(settings)),
        "RETRAIN_WRITABLE": _listed(_without_nested([settings.state, settings.models])),
        "PROTECT_HOME": "read-only" if _reaches_homes(layout) else "yes",
        "NETWORK": _network(settings.metrics),
        "ADDRESS_FAMILIES": "AF_UNIX" if settings.metrics is None else "AF_UNIX AF_INET AF_INET6",
    }
    if layout.flavour == "system":
        _refuse_private(settings)
    lines = [
        line.removeprefix(f"{layout.flavour}: ")
        for line in source(f"{name}.in").splitlines()
        if not line.startswith(f"{other}: ")
    ]
    text = "\n".join(lines) + "\n"
    # The second paragraph of the head tells of the source's own marks, of which a filled-in unit has none.
    text = re.sub(r"\A(#[^\n]*\n)#\n(?:#[^\n]*\n)*\n", r"\1\n", text)
    return re.sub(r"@([A-Z_]+)@", lambda match: words[match[1]], text)


def photo_folders(settings: Settings) -> tuple[Path, ...]:
    """The folders that photos move between."""
    return settings.inbox, settings.sorted, settings.review, settings.rejected


def writable(settings: Settings) -> list[Path]:
    """What the daemon writes to, as the mounts that its sandbox is made of.

    Each becomes a mount, and the kernel renames nothing from one mount to another, even on one file system. So the
    folders of the photos are opened by their common parent, where that is not half of the machine.
    """
    photos = list(photo_folders(settings))
    together = Path(os.path.commonpath(photos))
    if _is_ours_to_open(together):
        photos = [together]
    log = [settings.log.file.parent] if settings.log.file is not None else []
    return _without_nested([*photos, settings.state, *log])


def moves_stay_renames(settings: Settings) -> bool:
    """Whether one of the mounts of the sandbox holds all folders that photos move between."""
    return any(
        all(folder.is_relative_to(mount) for folder in photo_folders(settings))
        for mount in writable(settings)
    )


def _is_ours_to_open(folder: Path) -> bool:
    """Not the root, nothing directly below it, and nobody's home folder."""
    if len(folder.parts) <= 2:  # "/", "srv"
        return False
    return str(folder) not in HOMES and str(folder.parent) not in HOMES


def _folders(settings: Settings) -> list[Path]:
    log = [settings.log.file.parent] if settings.log.file is not None else []
    return [*photo_folders(settings), settings.state, settings.models, *log]


def _without_nested(folders: Iterable[Path]) -> list[Path]:
    """Each folder once, and none that lies inside another."""
    chosen: list[Path] = []
    for folder in sorted(set(folders)):
        if not any(folder.is_relative_to(one) for one in chosen):
            chosen.append(folder)
    return chosen


def _reaches_homes(layout: Layout) -> bool:
    settings = layout.settings
    other = [settings.trainer.other] if settings.trainer.other is not None else []
    paths = [*_folders(settings), *settings.trainer.data, *other, layout.config, layout.program]
    return any(path.is_relative_to(home) for path in paths for home in HOMES)


def _refuse_private(settings: Settings) -> None:
    problems = [
        f"{folder}: the system's service has a {top} of its own and would not see this; choose another place"
        for folder in _folders(settings)
        for top in PRIVATE
        if folder.is_relative_to(top)
    ]
    if problems:
        raise errors.ConfigError(problems)


def _network(address: str | None) -> str:
    """What the sandbox has to say about the network, where figures are served at `address` or not at all."""
    if address is None:
        return _NO_NETWORK
    host = address.rpartition(":")[0].strip("[]")
    try:
        here_only = ipaddress.ip_address(host).is_loopback
    except ValueError:
        here_only = host == "localhost"
    return f"{_NETWORK}\n{_HERE_ONLY}" if here_only else _NETWORK


def _quoted(path: Path) -> str:
    """A path as systemd.syntax(7) wants it: one with blanks or quotes in quotes, and no specifier in it."""
    text = str(path).replace("%", "%%")
    if re.search(r"[\s\"'\\]", text):
        text = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{text}"'
    return text


def _in_command(path: Path) -> str:
    """The same for a command line, in which a dollar sign would name a variable."""
    return _quoted(path).replace("$", "$$")


def _listed(paths: Sequence[Path]) -> str:
    return " ".join(_quoted(path) for path in paths)
