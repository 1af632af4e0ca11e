"""A machine of our own for a test: systemd as its process 1, an overlay of this one's files that is thrown away.

Takes root and systemd-nspawn. Nothing in it has a network, and nothing that happens in it is seen outside.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from harness import wait_until

PREFIX = Path("/opt/pawsort")
PYTHON = Path("/opt/python")  # this Python, where a service that sees no home folder finds it
DEPENDENCIES = Path("/opt/dependencies")  # what this Python has installed, pawsort itself left out


class UnavailableError(Exception):
    """Such a machine cannot be had here, and why."""


class Machine:
    """A booted machine. `folder` is its root as seen from outside."""

    def __init__(self, folder: Path, leader: int) -> None:
        self.folder = folder
        self._leader = leader

    def run(
        self, *command: str | Path, check: bool = True, user: str | None = None, timeout: float = 120
    ) -> str:
        """Run a program in it to its end, as root or as `user`; gives what it said."""
        if user is not None:
            command = ("runuser", "--user", user, "--", *command)
        enter = ["nsenter", f"--target={self._leader}", "--all", "env", "--chdir=/"]
        answer = subprocess.run(
            [*enter, *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
        )
        said = answer.stdout + answer.stderr
        assert not check or answer.returncode == 0, f"{command}: {said}"
        return said

    def at(self, path: str | Path) -> Path:
        """Where a path of this machine lies, seen from outside."""
        return self.folder / str(path).lstrip("/")

    def property(self, name: str, unit: str = "pawsort") -> str:
        """What systemd knows of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).strip()

    def journal(self, unit: str = "pawsort", *arguments: str) -> str:
        """The journal of a unit."""
        return self.run("journalctl", "--quiet", "--no-pager", f"--unit={unit}", "--output=cat", *arguments)


@contextlib.contextmanager
def booted(place: Path, wheel: Path) -> Iterator[Machine]:
    """A machine with the wheel installed at PREFIX, not as a service yet. Raises UnavailableError."""
    if os.geteuid() != 0:
        raise UnavailableError("it takes root")
    for program, package in (("systemd-nspawn", "systemd-container"), ("nsenter", "util-linux")):
        if shutil.which(program) is None:
            raise UnavailableError(f"it takes {program} ({package})")
    with contextlib.ExitStack() as stack:
        _mount(stack, "-t", "tmpfs", "-o", "size=1g", "pawsort-test", str(place))
        upper, work, root = (place / name for name in ("upper", "work", "root"))
        for folder in (upper, work, root):
            folder.mkdir()
        _mount(
            stack, "-t", "overlay", "overlay", "-o", f"lowerdir=/,upperdir={upper},workdir={work}", str(root)
        )
        _install(wheel, root)
        (root / "var/log/journal").mkdir(parents=True, exist_ok=True)
        yield _boot(stack, place, root)


def _mount(stack: contextlib.ExitStack, *arguments: str) -> None:
    answer = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if answer.returncode:
        raise UnavailableError(answer.stderr.strip())
    stack.callback(subprocess.run, ["umount", "--lazy", arguments[-1]], check=True)


def _install(wheel: Path, root: Path) -> None:
    """An environment as `pip install` leaves it, but for the dependencies: they are borrowed from this one."""
    prefix = root / str(PREFIX).lstrip("/")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = prefix / "lib" / version / "site-packages"
    for folder in (prefix / "bin", site, root / "opt/python", root / "opt/dependencies"):
        folder.mkdir(parents=True)
    (prefix / "pyvenv.cfg").write_text(f"home = {PYTHON}/bin\ninclude-system-site-packages = false\n")
    (prefix / "bin" / "python").symlink_to(PYTHON / "bin" / version)
    shutil.unpack_archive(wheel, site, "zip")
    (site / "dependencies.pth").write_text(f"{DEPENDENCIES}\n")
    for program, package in (("pawsort", "daemon"), ("pawsort-train", "trainer")):
        script = prefix / "bin" / program
        script.write_text(f"#!{PREFIX}/bin/python\nfrom {package}.__main__ import main\n\nmain()\n")
        script.chmod(0o755)
    (prefix / ".made-by-pawsort").touch()
    # Where this Python is linked to a library of its own.
    (root / "etc/ld.so.conf.d/python.conf").write_text(f"{PYTHON}/lib\n")
    # What is started on the machine that runs the tests is not to start here.
    shutil.rmtree(root / "etc/systemd/system", ignore_errors=True)
    (root / "etc/systemd/system").mkdir()


def _boot(stack: contextlib.ExitStack, place: Path, root: Path) -> Machine:
    # Nothing of it outlives the tests, however they end.
    command = [
        "setpriv",
        "--pdeathsig=KILL",
        "systemd-nspawn",
        "--quiet",
        f"--directory={root}",
        "--link-journal=no",
        "--register=no",
    ]
    command += ["--keep-unit", "--private-network", "--console=pipe", f"--machine=pawsort-test-{os.getpid()}"]
    command += [f"--bind-ro={sys.base_prefix}:{PYTHON}"]
    command += [f"--bind-ro={sysconfig.get_paths()['purelib']}:{DEPENDENCIES}"]
    log = stack.enter_context((place / "console").open("wb"))
    nspawn = subprocess.Popen(
        [*command, "--boot", "--", "--unit=basic.target"],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
    )

    def end() -> None:
        # The machine's process 1 outlives a killed nspawn, and with it everything that it started.
        with contextlib.suppress(OSError):
            if (process := leader()) is not None:
                os.kill(process, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            nspawn.kill()
        nspawn.wait()

    stack.callback(end)

    def leader() -> int | None:
        # nspawn's first child only prepares, and ends.
        for child in Path(f"/proc/{nspawn.pid}/task/{nspawn.pid}/children").read_text().split():
            with contextlib.suppress(FileNotFoundError):
                status = Path(f"/proc/{child}/status").read_text()
                if "Name:\tsystemd\n" in status and status.split("NSpid:")[1].split("\n")[0].endswith("\t1"):
                    return int(child)
        return None

    try:
        machine = Machine(root, wait_until(leader, "process 1 of the machine", timeout=10))
        wait_until(
            lambda: "running" in machine.run("systemctl", "is-system-running", check=False),
            "the machine booted",
            timeout=20,
        )
    except (AssertionError, OSError) as error:
        told = (place / "console").read_text(errors="replace")[-500:]
        raise UnavailableError(f"systemd does not come up in a container here: {error}; {told}") from error
    machine.run("ldconfig")
    return machine
