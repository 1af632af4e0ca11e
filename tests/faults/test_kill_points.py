"""SIGKILL at every system call that changes something, then a restart, then a count.

strace delivers the signal at the entry of the n-th call, so that this call is the first that is not carried out.
"""

import random
import shutil
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest

import drawn
import stocktaking
from ground import Ground, calls_in

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("strace")]

# Calls that change what is on a disk. The first are the steps of a move: each of theirs is tried in the short form too.
STEPS = ("renameat2", "rename", "linkat", "unlink", "mkdir")
WRITES = (
    "pwrite64",
    "write",
    "sendfile",
    "fdatasync",
    "fsync",
    "ftruncate",
    "openat",
    "utimensat",
    "chmod",
    "fchmodat",
)
CHANGES = ",".join((*STEPS, *WRITES))
EVERY = 6  # in the short form, one in so many of the other calls

# What makes the ladder of daemon.moving go down to each of its rungs.
RUNGS = {
    "rename": [],
    "link": ["-e", "inject=renameat2:error=EINVAL"],
    "placeholder": ["-e", "inject=renameat2:error=EINVAL", "-e", "inject=linkat:error=EPERM"],
    "across": [],
}


@pytest.fixture
def lay_out(tmp_path, other_disk):
    near = tmp_path / "ground"
    return lambda rung: Ground.lay_out(
        near, (other_disk if rung == "across" else near) / "sorted", near / "state"
    )


@pytest.mark.parametrize("rung", RUNGS)
def test_a_kill_at_any_system_call_costs_nothing(rung, sorter, lay_out, full, tmp_path):
    points = points_of(sorter, lay_out(rung), RUNGS[rung], tmp_path, full=full)
    for call, number in points:
        ground = lay_out(rung)
        code = sorter.sort_traced(ground, *RUNGS[rung], *kill_at(call, number))
        assert code == -signal.SIGKILL, f"{call} {number} was never reached"
        sorter.sort(ground)
        assert ground.wrong() == {}, f"killed at {call} {number}"
        ground.clear()
    print(f"{rung}: {len(points)} points of kill")


@pytest.mark.parametrize("rung", RUNGS)
def test_a_kill_during_the_recovery_from_a_kill_costs_nothing(rung, sorter, lay_out, full, tmp_path):
    points = points_of(sorter, lay_out(rung), RUNGS[rung], tmp_path, full=True)
    chance = random.Random(5)
    rounds = 40 if full else 6
    for first, second in zip(chance.sample(points, rounds), chance.choices(points, k=rounds), strict=True):
        ground = lay_out(rung)
        assert sorter.sort_traced(ground, *RUNGS[rung], *kill_at(*first)) == -signal.SIGKILL
        sorter.sort_traced(ground, *RUNGS[rung], *kill_at(*second))  # which may not be reached any more
        sorter.sort(ground)
        assert ground.wrong() == {}, f"killed at {first}, then at {second}"
        ground.clear()


@pytest.mark.parametrize("rung", ["rename", "across"])
def test_a_hurried_filing_is_caught(rung, sorter, lay_out, full, tmp_path):
    points = points_of(sorter, lay_out(rung), [], tmp_path, full=full, broken=True)
    caught = Counter()
    for call, number in points if full else points[::2]:
        ground = lay_out(rung)
        sorter.sort_traced(ground, *kill_at(call, number), broken=True)
        sorter.sort(ground, broken=True)
        caught.update(ground.wrong().keys())
        ground.clear()
    print(f"{rung}: {len(points)} points of kill; {dict(caught)}")
    assert caught["lost"]
    assert caught["overwritten"]
    assert caught["photos without rows"]


@pytest.mark.parametrize("where", ["same device", "another device"])
def test_pawsort_run_once_killed_at_any_system_call_loses_nothing(where, sandbox, other_disk, full, tmp_path):
    # -f is left out: only the main thread is traced, which is the one that files, and the decoders are not.
    settings = {} if where == "same device" else {"sorted": str(other_disk / "sorted")}
    box = sandbox(threshold=0.0, batch_size=2, **settings)
    into = Path(settings.get("sorted", box.sorted))
    photos = drawn.write_folder(tmp_path / "photos", "circles", 2) + drawn.write_folder(
        tmp_path / "photos", "squares", 2
    )
    (tmp_path / "photos" / "letter.jpg").write_text("no image")
    photos.append(tmp_path / "photos" / "letter.jpg")

    def reset() -> tuple[Counter[str], dict[Path, str]]:
        for folder in (box.inbox, into, box.review, box.rejected, tmp_path / "state"):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "photos", box.inbox)
        residents = {}
        for photo in photos[:4]:
            path = into / photo.name.partition("-")[0] / photo.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"somebody else's")
            residents[path] = stocktaking.sha256(path)
        return Counter(stocktaking.sha256(photo) for photo in photos), residents

    def run(*options: str) -> int:
        command = ["strace", "-qq", *options, *box.command("run", "--once")]
        return subprocess.run(command, capture_output=True, cwd=tmp_path, check=False).returncode

    reset()
    log = tmp_path / "strace.log"
    traced = "renameat2,unlink,mkdir,pwrite64,fdatasync,fsync"
    assert run("-o", str(log), "-e", f"trace={traced}") == 0
    points = [(call, number + 1) for call, count in sorted(calls_in(log).items()) for number in range(count)]
    random.Random(where).shuffle(points)
    # Into how many batches the photos fall is chance, so the last calls of one run may not come in another: what
    # counts is the points at which a run was really killed.
    wanted = int(0.7 * len(points)) if full else 3
    reached = 0
    for call, number in points:
        arrived, residents = reset()
        code = run("-o", "/dev/null", *kill_at(call, number))
        assert code in {0, -signal.SIGKILL}
        reached += code != 0
        restart = box.call("run", "--once")
        assert restart.returncode == 0, restart.stderr
        wrong = stocktaking.take(
            box.inbox,
            (into, box.review, box.rejected),
            tmp_path / "state" / "ledger.sqlite3",
            arrived,
            residents,
        )
        assert (wrong, list(box.inbox.iterdir())) == ({}, []), f"killed at {call} {number}"
        if reached == wanted and not full:
            break
    print(f"pawsort run --once, {where}: {reached} points of kill")
    assert reached >= wanted


def points_of(sorter, ground, options, folder, *, full, broken=False) -> list[tuple[str, int]]:
    """Every (call, number) at which sorting this ground can be killed; in the short form a part of them."""
    log = folder / "strace.log"
    assert sorter.sort_traced(ground, "-e", f"trace={CHANGES}", *options, log=log, broken=broken) == 0
    if not broken:
        assert ground.wrong() == {}
    ground.clear()
    made_to_fail = {option.partition("=")[2].partition(":")[0] for option in options if "inject=" in option}
    counts = {call: count for call, count in calls_in(log).items() if call not in made_to_fail}
    points = [(call, number + 1) for call, count in sorted(counts.items()) for number in range(count)]
    assert len(points) > 30, counts
    return [point for index, point in enumerate(points) if full or point[0] in STEPS or index % EVERY == 0]


def kill_at(call: str, number: int) -> list[str]:
    return ["-e", f"trace={CHANGES}", "-e", f"inject={call}:signal=KILL:when={number}"]
