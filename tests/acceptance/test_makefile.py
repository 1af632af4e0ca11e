"""What `make` does before it starts anything: installs once, finds Python or says what is missing."""

import os
import shutil
import subprocess
import time

import pytest

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


@pytest.fixture
def checkout(root, tmp_path):
    """A folder with what make looks at, and programs of our own in `bin`."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(root / name, tmp_path)
    (tmp_path / "bin").mkdir()
    return tmp_path


def make(folder, *arguments, path=None):
    environment = {**os.environ, "LC_ALL": "C", "PATH": path or os.environ["PATH"]}
    # What a make that runs these tests hands down.
    for name in ("MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MFLAGS", "ARGS", "CONFIG", "PYTHON"):
        environment.pop(name, None)
    program = shutil.which("make")
    return subprocess.run(
        [program, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def program(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def installed(checkout):
    """As after `make setup`."""
    (checkout / ".venv" / "bin").mkdir(parents=True)
    for name in ("bin/python", ".installed-base", ".installed-dev"):
        (checkout / ".venv" / name).touch()


@pytest.mark.parametrize(
    ("target", "starts"), [("run", "pawsort run --config config.yaml"), ("test", "pytest -m 'not long'")]
)
def test_what_is_installed_is_not_installed_again(checkout, target, starts):
    installed(checkout)
    answer = make(checkout, "--dry-run", target)
    (command,) = answer.stdout.splitlines()
    assert command.startswith(f".venv/bin/{starts}")


@pytest.mark.parametrize("changed", ["pyproject.toml", "constraints.txt"])
def test_what_is_asked_for_now_is_installed_when_that_changed(checkout, changed):
    installed(checkout)
    later = time.time() + 10
    os.utime(checkout / changed, (later, later))
    assert "--constraint constraints.txt --editable ." in make(checkout, "--dry-run", "run").stdout
    assert "--editable '.[train,heic,dev]'" in make(checkout, "--dry-run", "test").stdout


def test_running_asks_for_the_base_install_alone(checkout):
    answer = make(checkout, "--dry-run", "run")
    assert "--editable .\n" in answer.stdout
    assert "[train" not in answer.stdout


def test_without_a_new_enough_python_it_says_so(checkout):
    program(checkout / "bin" / "python3", "exit 1")
    answer = make(checkout, "setup", path=str(checkout / "bin"))
    assert answer.returncode != 0
    assert "pawsort needs Python 3.11 or newer, and found none" in answer.stderr
    assert not (checkout / ".venv").exists()


def test_without_the_package_that_makes_environments_it_names_it(checkout):
    program(checkout / "bin" / "python3", 'case "$2" in *ensurepip*) exit 1;; esac')
    answer = make(checkout, "setup", path=str(checkout / "bin"))
    assert answer.returncode != 0
    assert "apt-get install python3-venv" in answer.stderr
    assert not (checkout / ".venv").exists()
