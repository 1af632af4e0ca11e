"""The wheel alone, in an environment that has never seen PyTorch, sorts photos with the model it carries."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

import drawn

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def environment():
    """Variables for a process that must not see this repository or this environment."""
    return {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))
    }


@pytest.fixture(scope="module")
def built(root, tmp_path_factory):
    """A wheel, and a source distribution, as `python -m build` makes them."""
    folder = tmp_path_factory.mktemp("dist")
    command = [
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "--wheel",
        "--sdist",
        "--outdir",
        folder,
        root,
    ]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (wheel,) = folder.glob("*.whl")
    (sdist,) = folder.glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def installed(root, built, environment, tmp_path_factory):
    """Folder of the programs of an environment that has the wheel's base install and nothing else."""
    home = tmp_path_factory.mktemp("clean")
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    command = [home / "bin" / "python", "-m", "pip", "install", "--quiet"]
    command += ["--constraint", root / "constraints.txt", built[0]]
    subprocess.run(command, check=True, env=environment, cwd=home)
    return home / "bin"


@pytest.fixture
def run(installed, environment, tmp_path):
    """Run a program of the clean environment in a folder of its own."""

    def run(program, *arguments):
        return subprocess.run(
            [installed / program, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


@pytest.fixture
def inbox(tmp_path):
    (tmp_path / "config.yaml").write_text("inbox: inbox\nsorted: sorted\n")
    (tmp_path / "inbox").mkdir()
    return tmp_path / "inbox"


def test_the_wheel_carries_the_model_that_current_names_file_by_file(root, built):
    current = root / "models" / "current"
    expected = {
        f"pawsort/shipped/{path.relative_to(current).as_posix()}": path.read_bytes()
        for path in current.rglob("*")
        if path.is_file()
    }
    with zipfile.ZipFile(built[0]) as wheel:
        carried = {name: wheel.read(name) for name in wheel.namelist() if name.startswith("pawsort/shipped/")}
    assert carried == expected


def test_a_wheel_made_from_the_source_distribution_is_the_same_wheel(built, tmp_path):
    wheel, sdist = built
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = (path for path in tmp_path.iterdir() if path.is_dir())
    command = [
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "--wheel",
        "--outdir",
        tmp_path / "dist",
        source,
    ]
    subprocess.run(command, check=True, capture_output=True)
    (again,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        assert {entry.filename: entry.CRC for entry in second.infolist()} == {
            entry.filename: entry.CRC for entry in first.infolist()
        }


def test_the_base_install_has_no_pytorch(run):
    for module in ("torch", "torchvision", "nncf"):
        answer = run("python", "-c", f"import {module}")
        assert answer.returncode == 1
        assert "ModuleNotFoundError" in answer.stderr


def test_check_finds_the_shipped_model_usable(run, inbox):
    answer = run("pawsort", "check", "--json")
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["usable"] is True


def test_the_trainer_says_which_extra_it_needs(run, inbox):
    answer = run("pawsort-train", "fit", "--data", inbox)
    assert answer.returncode == 1
    assert "pawsort[train]" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_drawn_picture_is_filed_once_and_recorded(run, inbox, tmp_path):
    picture = drawn.encode(drawn.photo(1))
    (inbox / "drawn.jpg").write_bytes(picture)
    answer = run("pawsort", "run", "--once")
    assert answer.returncode == 0, answer.stderr
    assert not list(inbox.iterdir())
    (filed,) = tmp_path.rglob("drawn.jpg")
    assert filed.read_bytes() == picture
    (record,) = json.loads(run("pawsort", "show", "drawn.jpg", "--json").stdout)
    assert record["destination"] == str(filed)


@pytest.mark.real
def test_real_photos_are_sorted_into_the_folders_of_their_classes(run, inbox, tmp_path, shared):
    photos = {
        path.name: path
        for folder in (shared / "data" / "animals").iterdir()
        for path in sorted(folder.iterdir())[:10]
    }
    for name, path in photos.items():
        shutil.copyfile(path, inbox / name)
    answer = run("pawsort", "run", "--once")
    assert answer.returncode == 0, answer.stderr
    assert not list(inbox.iterdir())
    right = [
        name for name, path in photos.items() if (tmp_path / "sorted" / path.parent.name / name).is_file()
    ]
    wrong = [path for path in (tmp_path / "sorted").rglob("*.jpg") if path.name not in right]
    assert len(right) >= 0.9 * len(photos)
    assert len(wrong) <= 1
    for name in right:
        path = photos[name]
        assert (tmp_path / "sorted" / path.parent.name / name).read_bytes() == path.read_bytes()


def test_the_wheel_alone_can_make_itself_a_service(run):
    answer = run("pawsort", "service", "show")
    assert answer.returncode == 0, answer.stderr
    assert "ExecStart=/opt/pawsort/bin/pawsort run --config /etc/pawsort/config.yaml" in answer.stdout
    assert "OnCalendar=" in answer.stdout
    settings = run("python", "-c", "from daemon import units; print(units.source('config.yaml'))")
    assert "inbox: inbox" in settings.stdout


def test_a_service_gets_an_environment_of_its_own_and_takes_nobody_else_s(run, built, tmp_path):
    """Without the dependencies, which the environment above has already shown to install."""
    script = (
        "import os, sys; from pathlib import Path; from daemon import programs\n"
        "os.environ['PIP_NO_DEPS'] = '1'\n"
        "programs.make_environment('user', Path(sys.argv[1]), sys.argv[2], print, retrain=False)"
    )
    for _ in range(2):  # the second time, over the first
        answer = run("python", "-c", script, tmp_path / "prefix", built[0])
        assert answer.returncode == 0, answer.stderr
        assert (tmp_path / "prefix" / "bin" / "pawsort").is_file()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    answer = run("python", "-c", script, tmp_path / "other", built[0])
    assert "is not empty, and not ours" in answer.stderr
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.txt"]
