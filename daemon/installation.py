"""`pawsort service`: make pawsort a service of this machine or of one person, show it, take it away again.

Every step looks before it acts, so that installing again repairs and brings up to date. What was there before is left
alone: folders keep their owners, settings their words. Removing leaves photos, ledger, models and settings.
"""

from __future__ import annotations

import grp
import json
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from daemon import programs, units
from daemon.programs import Say
from daemon.units import Flavour, Layout
from pawsort import config, errors

ACCOUNT: Final = "pawsort"
OWN_FOLDER: Final = 0o2770  # for the account and its group; what is made inside belongs to the group again
HOLDING_FOLDER: Final = 0o2750
STATE_FOLDER: Final = 0o0750


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where an installation of this flavour puts things, unless it is told otherwise."""

    units: Path
    prefix: Path
    config: Path
    photos: Path  # inbox, sorted, review and rejected are made in it
    state: Path
    models: Path


def places(flavour: Flavour) -> Places:
    """The usual places of the system, or of the person who asks."""
    if flavour == "system":
        return Places(
            units=Path("/etc/systemd/system"),
            prefix=Path("/opt/pawsort"),
            config=Path("/etc/pawsort/config.yaml"),
            photos=Path("/srv/pawsort"),
            state=Path("/var/lib/pawsort"),
            models=Path("/var/lib/pawsort/models"),
        )
    home = Path.home()
    own = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local/share") / "pawsort"
    return Places(
        units=own / "systemd/user",
        prefix=data / "programs",
        config=own / "pawsort/config.yaml",
        photos=home / "pawsort",
        state=data / "state",
        models=data / "models",
    )


def install(
    flavour: Flavour,
    say: Say,
    *,
    config_file: Path | None = None,
    prefix: Path | None = None,
    wanted: str | None = None,
    program: Path | None = None,
    retrain: bool = False,
) -> None:
    """Make, enable and start the service; done again, bring it up to date.

    `wanted` is what pip installs into `prefix`, by default what this very program was installed from; `program` is a
    pawsort that is installed already, and serves instead. Raises ConfigError for what the caller has to mend,
    MachineError for what the machine refuses.
    """
    usual = places(flavour)
    _demand_root(flavour)
    _systemctl(flavour, "--version")
    config_file = (config_file or usual.config).absolute()
    # What was asked for once stays, until it is removed.
    retrain = retrain or any((usual.units / name).exists() for name in units.RETRAIN)
    if flavour == "system":
        os.umask(0o022)  # or a strict root would make programs that the account cannot run
        _make_account(say)
    if program is None:
        prefix = (prefix or usual.prefix).absolute()
        programs.make_environment(flavour, prefix, wanted, say, retrain=retrain)
        program = prefix / "bin" / "pawsort"
    elif prefix is not None:
        raise errors.ConfigError(
            "--prefix is where pawsort gets installed, --program says that it is; choose one"
        )
    if not config_file.exists():
        if config_file != usual.config:
            raise errors.ConfigError(f"{config_file}: no such file")
        _write(config_file, _first_settings(usual), say)
    settings = config.load(config_file)
    layout = Layout(
        flavour=flavour,
        program=program.absolute(),
        prefix=prefix,
        config=config_file,
        settings=settings,
        account=ACCOUNT,
    )
    texts = {name: units.render(name, layout) for name in units.names(retrain=retrain)}
    _make_folders(layout, say)
    _check(layout)
    for name, text in texts.items():
        _write(usual.units / name, text, say)
    _systemctl(flavour, "daemon-reload")
    started = [units.SERVICE, *(name for name in texts if name.endswith(".timer"))]
    _systemctl(flavour, "enable", "--quiet", *started)
    _start(flavour, started)
    _tell(layout, say, retrain=retrain)


def shown(
    flavour: Flavour, *, config_file: Path | None = None, program: Path | None = None
) -> dict[str, str]:
    """The units as `install` would write them: name -> text. Changes nothing. Raises ConfigError."""
    usual = places(flavour)
    config_file = (config_file or usual.config).absolute()
    if config_file.exists():
        settings = config.load(config_file)
    elif config_file != usual.config:
        raise errors.ConfigError(f"{config_file}: no such file")
    else:
        settings = config.Settings.model_validate(_first_folders(usual), context={"base": config_file.parent})
    prefix = usual.prefix if program is None else None
    program = (program or usual.prefix / "bin" / "pawsort").absolute()
    layout = Layout(flavour=flavour, program=program, prefix=prefix, config=config_file, settings=settings)
    return {name: units.render(name, layout) for name in units.names(retrain=True)}


def remove(flavour: Flavour, say: Say) -> None:
    """Stop the service and take its units and its programs away. Photos, ledger, models and settings stay."""
    _demand_root(flavour)
    folder = places(flavour).units
    present = [name for name in units.names(retrain=True) if (folder / name).exists()]
    if not present:
        say("there is no service to remove")
        return
    prefix = _recorded_prefix(folder / units.SERVICE)
    _systemctl(flavour, "disable", "--quiet", "--now", *present, may_fail="has no installation config")
    for name in present:
        (folder / name).unlink()
        say(f"removed {folder / name}")
    _systemctl(flavour, "daemon-reload")
    if prefix is not None and (prefix / programs.MARK).exists():
        shutil.rmtree(prefix)
        say(f"removed {prefix}")
    say("Photos, ledger, models and settings are where they were.")
    if flavour == "system":
        say(f"So is the account that owns them; when you need it no more: userdel {ACCOUNT}")


# -- The account and the programs -------------------------------------------------------------------


def _demand_root(flavour: Flavour) -> None:
    if flavour == "system" and os.geteuid() != 0:
        raise errors.ConfigError(
            "a service of the machine takes root: put sudo before it, or say --user for one of your own"
        )


def _make_account(say: Say) -> None:
    with suppress(KeyError):
        pwd.getpwnam(ACCOUNT)
        return
    home, shell = str(places("system").state), "/usr/sbin/nologin"
    known = ["--gid", ACCOUNT] if _group_exists() else ["--user-group"]
    programs.run(
        ["useradd", "--system", *known, "--home-dir", home, "--no-create-home", "--shell", shell, ACCOUNT]
    )
    say(f"made the account and the group {ACCOUNT}")


def _group_exists() -> bool:
    try:
        grp.getgrnam(ACCOUNT)
    except KeyError:
        return False
    return True


# -- Settings and folders ---------------------------------------------------------------------------


def _first_folders(usual: Places) -> dict[str, str]:
    photos = {name: str(usual.photos / name) for name in ("inbox", "sorted", "review", "rejected")}
    return {**photos, "state": str(usual.state), "models": str(usual.models)}


def _first_settings(usual: Places) -> str:
    """The commented settings, with folders of this installation."""
    text = units.source("config.yaml")
    for name, folder in _first_folders(usual).items():
        # A JSON string is a YAML one; in a replacement, backslashes would mean something.
        line = f"{name}: {json.dumps(folder)}".replace("\\", r"\\")
        text, times = re.subn(rf"^(?:# )?{name}: .*$", line, text, count=1, flags=re.MULTILINE)
        if not times:
            raise errors.MachineError(f"the settings that come with pawsort have no line for {name}")
    return text


def _make_folders(layout: Layout, say: Say) -> None:
    """Make the folders that are missing. Those that are there belong to somebody: they stay as they are."""
    settings = layout.settings
    photos = units.photo_folders(settings)
    together = Path(os.path.commonpath(photos))
    if not together.exists():
        _make_folder(layout, together, HOLDING_FOLDER, say)
    for folder in photos:
        if not folder.exists():
            _make_folder(layout, folder, OWN_FOLDER, say)
            if layout.flavour == "system":
                _open_to_group(folder, say)
    logs = [settings.log.file.parent] if settings.log.file is not None else []
    for folder in (settings.state, settings.models, *logs):
        if not folder.exists():
            _make_folder(layout, folder, STATE_FOLDER, say)
    if layout.flavour == "system" and not units.moves_stay_renames(settings):
        say(
            "note: the folders of the photos have no folder of their own in common, so that each photo is copied and "
            "not renamed; quicker is one that holds inbox, sorted, review and rejected and nothing else"
        )


def _make_folder(layout: Layout, folder: Path, mode: int, say: Say) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if layout.flavour == "system":
        account = pwd.getpwnam(layout.account)
        os.chown(folder, account.pw_uid, account.pw_gid)
        folder.chmod(mode)
    say(f"made {folder}")


def _open_to_group(folder: Path, say: Say) -> None:
    """Let the group read and write what is put here, whatever the umask of those who do."""
    entries = "u::rwX,g::rwX,o::-,m::rwX"
    if shutil.which("setfacl") is None:
        say(
            f"note: no setfacl here, so photos that come with a strict umask are unreadable in {folder}: install acl"
        )
        return
    try:
        programs.run(["setfacl", "--default", "--modify", entries, folder])
    except errors.MachineError as error:
        say(f"note: {error}; photos that come with a strict umask stay unreadable there")


def _check(layout: Layout) -> None:
    """Ask the program that will serve, as whom it will serve, whether it could. Raises ConfigError when not."""
    command = [str(layout.program), "check", "--config", str(layout.config), "--json"]
    if layout.flavour == "system":
        # runuser, for sudo is not on every machine.
        command = ["runuser", "--user", layout.account, "--", *command]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    if answer.returncode == 0:
        return
    try:
        findings = json.loads(answer.stdout)["findings"]
    except ValueError:
        raise errors.ConfigError(answer.stderr.strip() or f"{layout.program}: cannot be run") from None
    who = f"for {layout.account}: " if layout.flavour == "system" else ""
    raise errors.ConfigError(
        [f"{who}{one['what']} {one['value']}: {one['detail']}" for one in findings if not one["usable"]]
    )


# -- systemd ----------------------------------------------------------------------------------------


def _start(flavour: Flavour, started: Sequence[str]) -> None:
    try:
        _systemctl(flavour, "reset-failed", *started, may_fail="not loaded")
        _systemctl(flavour, "restart", *started)
    except errors.MachineError as error:
        which = ["--user-unit"] if flavour == "user" else ["--unit"]
        command = [
            "journalctl",
            "--quiet",
            "--no-pager",
            "--output=short",
            "--lines=5",
            *which,
            units.SERVICE,
        ]
        last = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        raise errors.MachineError(f"{error}\n{last}".strip()) from error


def _systemctl(flavour: Flavour, *arguments: str, may_fail: str | None = None) -> None:
    """Raises MachineError unless it works, or fails with the message `may_fail`."""
    try:
        programs.run(["systemctl", *(["--user"] if flavour == "user" else []), *arguments])
    except errors.MachineError as error:
        if may_fail is None or may_fail not in str(error):
            raise


def _recorded_prefix(unit: Path) -> Path | None:
    try:
        text = unit.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    found = re.search(rf'^{units.PREFIX_KEY}="?([^"\n]+)"?$', text, flags=re.MULTILINE)
    return Path(found[1].replace("%%", "%")) if found else None


def _write(file: Path, text: str, say: Say) -> None:
    """Write the file unless it says that already; a reader sees the old one or the new one."""
    with suppress(FileNotFoundError):
        if file.read_text(encoding="utf-8") == text:
            return
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.part")
    part.write_text(text, encoding="utf-8")
    part.chmod(0o644)
    part.replace(file)
    say(f"wrote {file}")


def _tell(layout: Layout, say: Say, *, retrain: bool) -> None:
    own = layout.flavour == "user"
    systemctl, journalctl = ("systemctl --user", "journalctl --user") if own else ("systemctl", "journalctl")
    sudo = "" if own else f"sudo -u {layout.account} "
    status = f"{sudo}{layout.program} status --config {layout.config}"
    say("")
    say(f"pawsort sorts what comes into {layout.settings.inbox}.")
    if own:
        say("It runs while you are logged in; always: loginctl enable-linger")
    else:
        say(f"Who may drop photos there and correct them is in its group: sudo adduser NAME {layout.account}")
    say(f"To look:    {systemctl} status pawsort;  {journalctl} --unit pawsort --follow")
    say(f"            {status}")
    say(f"To change:  {layout.config}, then {systemctl} restart pawsort")
    if retrain:
        say(f"It learns:  {systemctl} list-timers pawsort-retrain;  {journalctl} --unit pawsort-retrain")
    say(f"To remove:  {'' if own else 'sudo '}{layout.program} service remove{' --user' if own else ''}")
