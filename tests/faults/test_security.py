"""The daemon writes nowhere but its folders, talks to nobody, and runs nothing that a model or a photo brings."""

import json
import os
import pickle
import re
import shutil
import subprocess

import pytest

import drawn
from harness import Sandbox
from pawsort import bundle

pytestmark = pytest.mark.faults

CHANGING = (
    "openat,open,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,"
    "truncate,chmod,fchmodat,chown,fchownat,mknod,mknodat"
)
_FOR_WRITING = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC")
# Not places on a disk: the kernel's own files, and memory that processes share.
_NOWHERE = ("/dev/null", "/dev/tty", "/dev/shm", "/proc/")


class Bomb:
    def __reduce__(self):
        return os.system, (f"touch {os.environ['PAWSORT_TEST_BOMB']}",)


@pytest.mark.parametrize("resealed", [False, True])
def test_a_pickle_in_place_of_the_weights_is_never_run(resealed, tiny_model, tmp_path, monkeypatch):
    crater = tmp_path / "crater"
    monkeypatch.setenv("PAWSORT_TEST_BOMB", str(crater))
    models = tmp_path / "models"
    models.mkdir()
    shutil.copytree(tiny_model, models / "bomb")
    (models / "current").symlink_to("bomb")
    for name in (bundle.WEIGHTS, bundle.GRAPH):
        (models / "bomb" / name).write_bytes(pickle.dumps(Bomb()))
    if resealed:
        # By somebody who knows how: every checksum is right.
        manifest = json.loads((models / "bomb" / bundle.MANIFEST).read_text())
        (models / "bomb" / bundle.MANIFEST).unlink()
        bundle.seal(
            models / "bomb",
            {key: value for key, value in manifest.items() if key not in {"files", "format_version"}},
        )
    box = Sandbox(tmp_path, models)
    photo = drawn.write(box.inbox / "photo.jpg", drawn.draw("circles", 1))
    run = box.call("run", "--once")
    assert run.returncode == 2
    assert "bomb" in run.stderr
    assert photo.is_file()
    assert not crater.exists()


@pytest.mark.usefixtures("strace")
def test_it_writes_nowhere_but_its_folders_and_talks_to_nobody(sandbox, tmp_path):
    box = sandbox(threshold=0.0)
    home = tmp_path / "home"
    home.mkdir()
    drawn.write_classes(box.inbox, 1)
    (box.inbox / "letter.jpg").write_text("no image")
    log = tmp_path / "strace.log"
    run = subprocess.run(
        [
            "strace",
            "-f",
            "-qq",
            "-s",
            "4096",
            "-o",
            log,
            "-e",
            f"trace={CHANGING},%net",
            *box.command("run", "--once"),
        ],
        cwd=box.folder,
        # Python writes its compiled modules beside them at the first run, which an installation has done already.
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    ours = tuple(
        f"{folder}" for folder in (box.inbox, box.sorted, box.review, box.rejected, tmp_path / "state")
    )
    calls = log.read_text(errors="replace").splitlines()
    written = {path for line in calls for path in paths_changed(line)}
    assert any(path.startswith(str(box.sorted)) for path in written)
    assert {path for path in written if not path.startswith((*ours, *_NOWHERE))} == set()
    assert list(home.iterdir()) == []

    families = {match for line in calls for match in re.findall(r"\b(AF_\w+|PF_\w+)", line)}
    assert families <= {"AF_UNIX"}
    assert not [line for line in calls if re.search(r"\bconnect\(", line)]


def paths_changed(line: str) -> list[str]:
    """Paths that a line of strace's log says were written to, made, renamed or removed."""
    call = re.match(r"\d+ +(\w+)\((.*)\) += (-?\d+)", line)
    if call is None or call[3].startswith("-1") or call[1] not in CHANGING.split(","):
        return []
    if call[1] in {"open", "openat"} and not _FOR_WRITING.search(call[2]):
        return []
    return [path for path in re.findall(r'"((?:[^"\\]|\\.)*)"', call[2]) if path]


@pytest.mark.parametrize(
    "name", ["..jpg", "...", "-rf.jpg", "$(touch crater).jpg", "%2e%2e%2fout.jpg", "..\\out.jpg"]
)
def test_no_name_leads_out_of_the_folders(name, sandbox, tmp_path):
    box = sandbox(threshold=0.0)
    before = {path.name for path in tmp_path.iterdir()} | {"sorted", "review", "rejected", "state"}
    drawn.write(box.inbox / "x.jpg", drawn.draw("circles", 1)).rename(box.inbox / f"a{name}")
    assert box.call("run", "--once").returncode == 0
    assert len(list(box.sorted.glob(f"*/a{name}"))) == 1
    assert {path.name for path in tmp_path.iterdir()} <= before
