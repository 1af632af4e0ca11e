"""What a photo may cost, counted in calls: a figure that a slow or busy machine does not change.

A backlog on the real process under strace. Each bound is what the design asks for; one read, copy, sync or commit more
a photo, and a test here says so.
"""

import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import drawn

PHOTOS = 64
BATCH = 16
# A batch is what the decoders have ready, so it may be smaller than allowed; not, in a backlog, by this much.
MOST_BATCHES = PHOTOS // 4

CALLS = "openat,pread64,read,renameat2,rename,linkat,unlink,fsync,fdatasync,mkdir,copy_file_range,sendfile,recvmsg"


@pytest.fixture(scope="module")
def calls(tmp_path_factory, tiny_model) -> list[tuple[str, str]]:
    """Every call of the daemon and its decoders over a backlog: (name, the rest of strace's line)."""
    if shutil.which("strace") is None:
        pytest.skip("wants strace (on Debian and Ubuntu: apt-get install strace)")
    folder = tmp_path_factory.mktemp("costs")
    (folder / "inbox").mkdir()
    for number in range(PHOTOS):
        picture = drawn.draw(drawn.LABELS[number % 3], number, 256)
        (folder / "inbox" / f"{number:03d}.photo.jpg").write_bytes(drawn.encode(picture, ".jpg"))
    (folder / "config.yaml").write_text(
        f"inbox: inbox\nsorted: sorted\nmodels: {tiny_model.parent}\nbatch_size: {BATCH}\ndecoders: 2\n"
    )
    # -yy: descriptors are told with their files.
    command = [
        "strace",
        "-f",
        "-yy",
        "-qq",
        "-s",
        "64",
        "-o",
        str(folder / "strace.log"),
        "-e",
        f"trace={CALLS}",
    ]
    run = [sys.executable, "-m", "daemon", "run", "--once", "--config", str(folder / "config.yaml")]
    done = subprocess.run([*command, *run], capture_output=True, text=True, check=False, timeout=300)
    if "Operation not permitted" in done.stderr:
        pytest.skip(f"strace may not trace here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^\d+ +(\w+)\((.*)", (folder / "strace.log").read_text(), re.MULTILINE)
    assert (
        sum(1 for path in folder.glob("sorted/*/*")) + sum(1 for _ in (folder / "review").iterdir()) == PHOTOS
    )
    return found


def count(calls, name: str, containing: str = "") -> int:
    return sum(1 for call, rest in calls if call == name and containing in rest)


def test_a_photo_is_opened_and_read_once(calls):
    opened, read = (
        Counter(
            re.search(r"(\d+)\.photo\.jpg", rest)[1]
            for call, rest in calls
            if call in names and ".photo.jpg" in rest
        )
        for names in ({"openat"}, {"pread64", "read"})
    )
    assert set(opened.values()) == {1}
    assert set(read.values()) == {1}
    assert len(opened) == len(read) == PHOTOS


def test_a_photo_is_moved_by_one_rename_and_never_copied(calls):
    assert count(calls, "renameat2", ".photo.jpg") == PHOTOS
    for other in ("linkat", "unlink", "rename", "copy_file_range", "sendfile"):
        assert count(calls, other, ".photo.jpg") == 0


def test_a_batch_shares_its_commits_and_its_folders_syncs(calls):
    commits = count(calls, "fdatasync", "ledger") + count(calls, "fsync", "ledger")
    folders = sum(count(calls, "fsync", f"/{name}>") for name in (*drawn.LABELS, "sorted", "review", "inbox"))
    # Before the move and after it, and what opening and closing the ledger take.
    assert commits <= 2 * MOST_BATCHES + 12
    # Each batch: the inbox, and every folder that photos of it went to.
    assert folders <= 5 * MOST_BATCHES + 5
    assert commits >= 2
    assert folders >= 2


def test_numpy_s_threads_do_not_spin_beside_the_decoders(tmp_path: Path):
    # OpenBLAS keeps a thread a core turning for a while after each product; they took a third of the processor.
    program = (
        "import daemon.__main__, numpy, os; a = numpy.ones((600, 600), 'f4'); a @ a; "
        "print(len(os.listdir('/proc/self/task')))"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "1"
