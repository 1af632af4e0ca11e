import os
import resource
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from daemon import intake
from daemon.intake import Arrival, Identity, Ignore, Intake, Lease, Ready, Wait, Why, ignored_name, read_lease

SETTLE, PATIENCE = 2.0, 300.0
NOW = 1_000_000.0


class Clock:
    """Both clocks of an intake, moved by hand."""

    def __init__(self):
        self.monotonic, self.wall = 100.0, NOW

    def pass_by(self, seconds):
        self.monotonic += seconds
        self.wall += seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make(clock):
    def make(**options):
        return Intake(
            settle_s=SETTLE,
            patience_s=PATIENCE,
            monotonic=lambda: clock.monotonic,
            clock=lambda: clock.wall,
            **options,
        )

    return make


@pytest.fixture
def desk(make):
    """An intake that can trust leases."""
    return make()


@pytest.fixture
def blind(make):
    """An intake that cannot have leases, as on network file systems."""
    return make(leases=False)


@pytest.fixture
def photo(tmp_path, clock):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"photo")
    touch(path, clock.wall)
    return path


def touch(path, when):
    os.utime(path, (when, when))


def examine(desk, path, *, finished=False):
    found = desk.examine(Arrival(path=path, finished=finished, noticed_at=100.0))
    if isinstance(found, Ready):
        os.close(found.descriptor)
    return found


@contextmanager
def writer(path):
    """Another process that holds the file open for writing."""
    script = "import sys; stream = open(sys.argv[1], 'ab'); print('open', flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", script, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout.readline() == b"open\n"
        yield process
    finally:
        process.communicate()


# The one rule


def test_a_file_that_a_process_writes_to_waits_and_is_ready_when_it_is_closed(desk, clock, photo):
    with writer(photo):
        found = examine(desk, photo)
        assert isinstance(found, Wait)
        assert found.why is Why.WRITING
        clock.pass_by(3600)
        # However long it stands still, and whatever the watcher says: somebody holds it.
        assert examine(desk, photo, finished=True).why is Why.WRITING
    assert isinstance(examine(desk, photo), Ready)


def test_a_file_that_nobody_writes_to_is_ready_at_once_also_at_start_up(desk, photo):
    found = examine(desk, photo)
    assert isinstance(found, Ready)
    assert found.path == photo
    assert found.identity == Identity.of(photo.stat())


def test_what_is_ready_is_open_for_reading_that_very_file(desk, photo):
    found = desk.examine(Arrival(path=photo, noticed_at=1.5))
    photo.unlink()
    assert os.pread(found.descriptor, 100, 0) == b"photo"
    assert not os.get_inheritable(found.descriptor)
    assert found.noticed_at == 1.5
    os.close(found.descriptor)


def test_a_reader_is_no_writer(desk, photo):
    with photo.open("rb"):
        assert isinstance(examine(desk, photo), Ready)


def test_the_lease_is_given_back_at_once(photo):
    descriptor = os.open(photo, os.O_RDONLY)
    assert read_lease(descriptor) is Lease.NO_WRITER
    with photo.open("ab"):  # would block, and be signalled, if the lease were still held
        assert read_lease(descriptor) is Lease.WRITER
    os.close(descriptor)


def test_somebody_elses_file_gives_no_lease_which_tells_nothing(photo):
    if os.geteuid() != 0:
        pytest.skip("becoming somebody else needs root")
    script = (
        "import os, sys; from daemon.intake import read_lease\n"
        "descriptor = os.open(sys.argv[1], os.O_RDONLY); os.setgid(65534); os.setuid(65534)\n"
        "print(read_lease(descriptor).name)"
    )
    done = subprocess.run([sys.executable, "-c", script, photo], capture_output=True, text=True, check=True)
    assert done.stdout == "UNKNOWN\n"


def test_without_a_lease_a_young_file_has_to_stand_still_for_the_quiet_period(blind, clock, photo):
    found = examine(blind, photo)
    assert (found.why, found.due) == (Why.SETTLING, clock.monotonic + SETTLE)
    clock.pass_by(SETTLE - 0.1)
    assert examine(blind, photo).why is Why.SETTLING
    clock.pass_by(0.1)
    assert isinstance(examine(blind, photo), Ready)


def test_without_a_lease_every_change_begins_the_quiet_period_anew(blind, clock, photo):
    examine(blind, photo)
    for _ in range(3):
        clock.pass_by(SETTLE - 0.1)
        with photo.open("ab") as stream:
            stream.write(b"more")
        touch(photo, clock.wall)
        assert examine(blind, photo).why is Why.SETTLING
    clock.pass_by(SETTLE)
    assert isinstance(examine(blind, photo), Ready)


def test_without_a_lease_an_event_of_its_end_is_believed(blind, photo):
    assert isinstance(examine(blind, photo, finished=True), Ready)


def test_without_a_lease_a_file_that_stood_still_for_long_is_ready_at_once(blind, clock, photo):
    touch(photo, clock.wall - SETTLE)
    assert isinstance(examine(blind, photo), Ready)


@pytest.mark.parametrize("future", [1.0, 10 * 365 * 86400.0])
def test_a_time_in_the_future_neither_hurries_nor_hinders(blind, clock, photo, future):
    touch(photo, clock.wall + future)
    assert examine(blind, photo).why is Why.SETTLING
    clock.pass_by(SETTLE)
    assert isinstance(examine(blind, photo), Ready)


def test_a_wall_clock_set_back_does_not_make_a_file_wait_for_ever(blind, clock, photo):
    examine(blind, photo)
    clock.wall -= 86_400
    clock.monotonic += SETTLE
    assert isinstance(examine(blind, photo), Ready)


# Pictures that are not whole


def test_a_truncated_picture_waits_while_it_is_young_and_no_longer(desk, clock, photo):
    ready = examine(desk, photo)
    waiting = desk.unfinished(ready, "the end is missing")
    assert (waiting.why, waiting.detail) == (Why.UNFINISHED, "the end is missing")
    assert waiting.due == pytest.approx(clock.monotonic + PATIENCE)
    clock.pass_by(PATIENCE - 1)
    assert examine(desk, photo).why is Why.UNFINISHED  # the same bytes are not decoded again
    clock.pass_by(1)
    ready = examine(desk, photo)
    assert isinstance(ready, Ready)
    assert desk.unfinished(ready, "the end is missing") is None


def test_a_truncated_picture_that_grows_is_looked_at_again(desk, clock, photo):
    desk.unfinished(examine(desk, photo), "the end is missing")
    clock.pass_by(10)
    with photo.open("ab") as stream:
        stream.write(b"the end")
    assert isinstance(examine(desk, photo, finished=True), Ready)


def test_a_picture_truncated_long_ago_is_no_upload(desk, clock, photo):
    touch(photo, clock.wall - PATIENCE)
    assert desk.unfinished(examine(desk, photo), "the end is missing") is None


def test_patience_with_a_time_in_the_future_ends_too(desk, clock, photo):
    touch(photo, clock.wall + 10**8)
    assert desk.unfinished(examine(desk, photo), "the end is missing") is not None
    clock.pass_by(PATIENCE)
    assert desk.unfinished(examine(desk, photo), "the end is missing") is None


@pytest.mark.parametrize("jump", [1e8, -1e8])
def test_a_clock_that_jumps_while_we_run_ends_no_patience(desk, clock, photo, jump):
    clock.wall += jump
    assert desk.unfinished(examine(desk, photo), "the end is missing") is not None
    clock.pass_by(PATIENCE)
    assert desk.unfinished(examine(desk, photo), "the end is missing") is None


def test_an_empty_file_is_an_upload_until_patience_ends(desk, clock, photo):
    photo.write_bytes(b"")
    touch(photo, clock.wall)
    assert examine(desk, photo, finished=True).why is Why.UNFINISHED
    clock.pass_by(PATIENCE)
    assert isinstance(examine(desk, photo), Ready)


# What is never opened


def special(tmp_path, kind):
    path = tmp_path / "x.jpg"
    if kind == "named pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            os.chdir(tmp_path)  # a socket's path may not be long
            server.bind("x.jpg")
    elif kind == "device":
        if os.geteuid() != 0:
            pytest.skip("making a device node needs root")
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"link to a file": "/etc/passwd", "link in a circle": "x.jpg"}.get(kind, "nowhere"))
    return path


@pytest.mark.parametrize(
    "kind",
    ["named pipe", "socket", "device", "folder", "link to a file", "link in a circle", "dangling link"],
)
def test_what_is_no_regular_file_is_ignored_and_never_opened(desk, tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = special(tmp_path, kind)
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("it was opened"))
    found = examine(desk, path, finished=True)
    assert isinstance(found, Ignore)
    assert found.reason == f"is a {'symbolic link' if 'link' in kind else kind}"


@pytest.mark.parametrize("kind", ["named pipe", "link to a file"])
def test_a_file_swapped_for_something_else_between_look_and_open_is_ignored_without_blocking(
    desk, tmp_path, photo, kind, monkeypatch
):
    lstat = os.lstat

    def look_and_be_overtaken(path):
        status = lstat(path)
        photo.unlink()
        special(tmp_path, kind).rename(photo)
        return status

    monkeypatch.setattr(os, "lstat", look_and_be_overtaken)
    before = os.listdir("/proc/self/fd")
    assert isinstance(examine(desk, photo), Ignore)
    assert os.listdir("/proc/self/fd") == before


def test_what_is_gone_is_ignored_and_forgotten(blind, photo):
    examine(blind, photo)
    photo.unlink()
    assert examine(blind, photo).reason == "is gone"
    assert not blind.holds(photo)
    assert blind.waiting()[Why.SETTLING] == 0


@pytest.mark.parametrize(
    "name",
    [
        ".a.jpg.Xb3kQ2",
        "a.jpg.part",
        "a.jpg.partial",
        "a.jpg.filepart",
        "a.jpg.crdownload",
        "a.jpg.download",
        "a.tmp",
        "a.jpg~",
        "~$a.docx",
        "~syncthing~a.jpg.tmp",
        ".syncthing.a.jpg.tmp",
        ".in.a.jpg.",
        "Thumbs.db",
        "desktop.ini",
        "@eaDir",
    ],
)
def test_unfinished_names_of_other_programs_are_ignored(desk, tmp_path, name):
    (tmp_path / name).write_bytes(b"photo")
    assert "temporary name" in examine(desk, tmp_path / name, finished=True).reason


@pytest.mark.parametrize(
    "name", ["a.jpg", "part", "a.part.jpg", "a~b.jpg", "tmp.jpg", "$a.jpg", "thumbs", "a\n.jpg"]
)
def test_other_names_are_not(name):
    assert ignored_name(name) is None


# Faults of the machine


def test_too_many_open_files_is_a_fault_that_passes(desk, clock, photo):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open("/dev/null", os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        found = examine(desk, photo)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (found.why, found.detail) == (Why.FAULT, "Too many open files")
    assert desk.waiting()[Why.FAULT] == 1
    assert "Too many open files" in desk.fault()
    clock.pass_by(intake.FAULT_RECHECK)
    assert [arrival.path for arrival in desk.due()] == [photo]
    assert isinstance(examine(desk, photo), Ready)
    assert desk.fault() is None


def test_a_file_that_may_not_be_read_is_a_fault_and_not_the_photos(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"photo")
    path.chmod(0)
    script = (
        "import os, sys; from pathlib import Path; from daemon.intake import *\n"
        "os.chdir(sys.argv[1])\n"
        "if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "found = Intake(settle_s=1, patience_s=1).examine(Arrival(path=Path('a.jpg'), noticed_at=0))\n"
        "print(found.why.name, found.detail)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True
    )
    assert done.stdout == "FAULT Permission denied\n"


# What waits


def test_waiting_files_come_when_they_are_due_and_not_before(blind, clock, photo):
    assert blind.next_due() is None
    found = examine(blind, photo)
    assert blind.due() == []
    assert blind.next_due() == found.due
    assert blind.holds(photo)
    clock.pass_by(SETTLE)
    assert blind.due() == [Arrival(path=photo, finished=False, noticed_at=100.0)]
    examine(blind, photo)
    assert (blind.due(), blind.next_due(), blind.holds(photo)) == ([], None, False)


def test_the_longest_waiting_file_is_known_with_its_reason(desk, clock, tmp_path):
    assert desk.longest_waiting() is None
    paths = [tmp_path / name for name in ("old.jpg", "new.jpg")]
    for path in paths:
        path.write_bytes(b"photo")
    with writer(paths[0]), writer(paths[1]):
        for path in paths:
            examine(desk, path)
            clock.pass_by(10)
        assert desk.longest_waiting() == (paths[0], "a writer has it open", 20.0)
        examine(desk, paths[0])
        assert desk.longest_waiting()[2] == 20.0


def test_memory_of_waiting_files_is_bounded_and_says_when_it_was_not_enough(
    blind, clock, tmp_path, monkeypatch
):
    monkeypatch.setattr(intake, "MOST_WAITING", 3)
    for number in range(5):
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(b"photo")
        touch(path, clock.wall)
        examine(blind, path)
    assert blind.waiting()[Why.SETTLING] == 3
    assert blind.forgot_some


def test_a_file_left_alone_is_passed_over_until_it_changes(desk, photo):
    ready = examine(desk, photo)
    desk.leave_alone(ready)
    assert desk.holds(photo)
    assert examine(desk, photo, finished=True) == Ignore(path=photo, reason="is left alone")
    photo.write_bytes(b"another photo")
    assert not desk.holds(photo)
    assert isinstance(examine(desk, photo), Ready)


def test_no_descriptor_is_left_open_whatever_the_answer(desk, blind, photo, tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    with writer(photo):
        inside = len(os.listdir("/proc/self/fd"))
        for place in (desk, blind):
            for path in (photo, tmp_path / "gone", tmp_path):
                examine(place, path)
        assert len(os.listdir("/proc/self/fd")) == inside
    assert len(os.listdir("/proc/self/fd")) == before


def test_names_of_any_bytes_are_examined(desk, tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9\n.jpg")
    path.write_bytes(b"photo")
    assert isinstance(examine(desk, path), Ready)
    assert isinstance(path, Path)
