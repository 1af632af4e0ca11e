import errno
import os
import shutil
import stat
import statistics
import subprocess
import sys
import threading
import time
import tracemalloc
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import faultstage
from daemon import inbox
from daemon.inbox import Inbox, file_system, files_below

PATIENCE = 10.0  # seconds; how long a test waits for what should take milliseconds


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "inbox"
    root.mkdir()
    return root


@pytest.fixture(autouse=True)
def _gives_back_what_it_took():
    yield
    taken = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if os.path.lexists(path)]
    assert not any("inotify" in target for target in taken)


class Watcher:
    """An inbox at work, with a loop of its own that takes what arrives."""

    def __init__(self, root, **options):
        self.woken = threading.Event()
        options = {"recursive": True, "rescan_s": 3600.0, **options}
        self.inbox = Inbox(root, wake=self.woken.set, **options)
        self.known = set()
        self.arrivals = []

    def take(self):
        while (arrival := self.inbox.next(self.known.__contains__)) is not None:
            self.arrivals.append(arrival)
            self.known.add(arrival.path)

    def until(self, condition, what):
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain for {what}; came: {self.arrivals}"
            self.woken.wait(0.02)
            self.woken.clear()
            self.inbox._next_health = 0.0  # look after the watch at each turn
            self.inbox.check_health()
            self.take()

    def until_seen(self, path, *, finished=None):
        def seen():
            return any(
                arrival.path == path and finished in {None, arrival.finished} for arrival in self.arrivals
            )

        self.until(seen, path)

    def until_rescanned(self, reason):
        self.until(lambda: self.inbox.last_rescan and self.inbox.last_rescan[1] == reason, reason)


@contextmanager
def watching(root, **options):
    watcher = Watcher(root, **options)
    watcher.inbox.start()
    try:
        watcher.take()
        yield watcher
    finally:
        watcher.inbox.stop()


# Each way in which a photo arrives. `finished` says that its end was seen.


def test_a_file_written_and_closed_is_seen_finished(root):
    with watching(root) as watcher:
        (root / "a.jpg").write_bytes(b"photo")
        watcher.until_seen(root / "a.jpg", finished=True)


def test_a_file_still_being_written_is_seen_and_not_called_finished(root):
    with watching(root) as watcher, (root / "a.jpg").open("wb") as stream:
        stream.write(b"pho")
        stream.flush()
        watcher.until_seen(root / "a.jpg", finished=False)
        assert not any(arrival.finished for arrival in watcher.arrivals)
        stream.write(b"to")
        stream.close()
        watcher.until_seen(root / "a.jpg", finished=True)


def test_a_file_renamed_in_from_outside_is_seen(root, tmp_path):
    (tmp_path / "outside.jpg").write_bytes(b"photo")
    with watching(root) as watcher:
        (tmp_path / "outside.jpg").rename(root / "a.jpg")
        watcher.until_seen(root / "a.jpg")


def test_a_temporary_name_renamed_to_its_final_one_is_seen_under_that(root):
    with watching(root) as watcher:
        (root / "a.jpg.part").write_bytes(b"photo")
        (root / "a.jpg.part").rename(root / "a.jpg")
        watcher.until_seen(root / "a.jpg")


def test_a_file_linked_in_is_seen(root, tmp_path):
    (tmp_path / "outside.jpg").write_bytes(b"photo")
    with watching(root) as watcher:
        os.link(tmp_path / "outside.jpg", root / "a.jpg")
        watcher.until_seen(root / "a.jpg")


def test_a_folder_moved_in_with_all_that_is_in_it_is_seen(root, tmp_path):
    (tmp_path / "trip" / "day 1").mkdir(parents=True)
    for name in ("a.jpg", "day 1/b.jpg"):
        (tmp_path / "trip" / name).write_bytes(b"photo")
    with watching(root) as watcher:
        (tmp_path / "trip").rename(root / "trip")
        watcher.until_seen(root / "trip" / "a.jpg")
        watcher.until_seen(root / "trip" / "day 1" / "b.jpg")
        # and it is watched from now on
        (root / "trip" / "day 1" / "c.jpg").write_bytes(b"photo")
        watcher.until_seen(root / "trip" / "day 1" / "c.jpg", finished=True)


def test_a_folder_that_arrives_is_looked_into_whatever_events_told_of_its_files(root):
    with watching(root) as watcher:
        (root / "trip").mkdir()
        watcher.until_rescanned("a folder arrived")


def test_a_file_in_a_new_folder_is_seen_however_fast_it_follows(root):
    with watching(root) as watcher:
        for number in range(20):
            (root / str(number) / "deep").mkdir(parents=True)
            (root / str(number) / "deep" / "a.jpg").write_bytes(b"photo")
        for number in range(20):
            watcher.until_seen(root / str(number) / "deep" / "a.jpg")


def test_names_of_any_bytes_are_seen_byte_for_byte(root):
    with watching(root) as watcher:
        for name in (b"caf\xe9.jpg", b"a\nb.jpg", b"x" * 255):
            path = root / os.fsdecode(name)
            path.write_bytes(b"photo")
            watcher.until_seen(path)


def test_photos_taken_away_again_do_not_delay_those_that_come(root, tmp_path):
    waits = []
    with watching(root) as watcher:
        for number in range(20):
            path = root / f"{number}.jpg"
            began = time.monotonic()
            path.write_bytes(b"photo")
            watcher.until_seen(path, finished=True)
            waits.append(time.monotonic() - began)
            path.rename(tmp_path / path.name)
            watcher.known.discard(path)
    # watchdog alone holds each back for half a second; a busy machine may hold back some.
    assert statistics.median(waits) < 0.4


def test_what_was_there_before_is_found_by_the_rescan_at_start_up_and_recovers_nothing(root):
    (root / "a.jpg").write_bytes(b"photo")
    with watching(root) as watcher:
        assert [arrival.path for arrival in watcher.arrivals] == [root / "a.jpg"]
        assert watcher.inbox.last_rescan[1] == "start-up"
        assert watcher.inbox.recovered_by_rescan == 0


def test_several_events_of_one_file_are_one_arrival(root):
    box = Inbox(root, recursive=True, rescan_s=3600)
    box.hint(root / "a.jpg", finished=False)
    box.hint(root / "a.jpg", finished=True)
    box.hint(root / "a.jpg", finished=False)
    assert box.hints_waiting == 1
    assert box.next(lambda _: False).finished


# Rescans


def test_a_regular_rescan_finds_what_no_event_told_and_counts_it(root):
    now = [0.0]
    box = Inbox(root, recursive=True, rescan_s=60, monotonic=lambda: now[0])
    assert box.next(lambda _: False) is None
    (root / "old.jpg").write_bytes(b"photo")
    assert box.next(lambda _: False) is None
    assert box.next_rescan_in() == 60
    now[0] = 60.0
    assert box.next(lambda _: False).path == root / "old.jpg"
    assert box.recovered_by_rescan == 0  # so young that its event may only be late


def test_an_older_file_found_by_a_regular_rescan_counts_as_recovered(root, monkeypatch):
    now = [0.0]
    box = Inbox(root, recursive=True, rescan_s=60, monotonic=lambda: now[0])
    assert box.next(lambda _: False) is None
    (root / "old.jpg").write_bytes(b"photo")
    monkeypatch.setattr(inbox, "RECOVERY_AGE", -1.0)  # a file's ctime cannot be set
    now[0] = 60.0
    assert box.next(lambda _: False).path == root / "old.jpg"
    assert box.recovered_by_rescan == 1


def test_a_rescan_passes_over_what_is_known(root):
    for name in ("known.jpg", "new.jpg"):
        (root / name).write_bytes(b"photo")
    box = Inbox(root, recursive=True, rescan_s=60)
    assert box.next(lambda path: path.name == "known.jpg").path == root / "new.jpg"
    assert box.next(lambda path: path.name == "known.jpg") is None
    assert box.exhausted


def test_more_hints_than_are_remembered_lead_to_a_rescan_that_counts_what_it_finds(root, monkeypatch):
    monkeypatch.setattr(inbox, "MOST_HINTS", 2)
    box = Inbox(root, recursive=True, rescan_s=3600)
    assert box.next(lambda _: False) is None
    for number in range(5):
        path = root / f"{number}.jpg"
        path.write_bytes(b"photo")
        box.hint(path, finished=True)
    known = set()
    while (arrival := box.next(known.__contains__)) is not None:
        known.add(arrival.path)
    assert len(known) == 5
    assert box.last_rescan[1] == "more events than could be remembered"
    assert box.recovered_by_rescan == 3


@pytest.mark.faults
def test_lost_events_lead_to_a_rescan_at_once_and_what_it_finds_is_counted(root):
    limit = Path("/proc/sys/fs/inotify/max_queued_events")
    if os.geteuid() != 0 or not os.access(limit, os.W_OK):
        pytest.skip("lowering fs.inotify.max_queued_events needs root")
    usual = limit.read_text()
    limit.write_text("16")
    try:
        with watching(root) as watcher:
            # Another process makes the files in one burst, while the threads that read events get no turn.
            script = "import sys\nfor n in range(3000): open(f'{sys.argv[1]}/{n}.jpg', 'wb').close()"
            switch = sys.getswitchinterval()
            sys.setswitchinterval(5.0)
            try:
                process = subprocess.Popen([sys.executable, "-c", script, root])
                while process.poll() is None:
                    sum(range(1_000_000))
            finally:
                sys.setswitchinterval(switch)
            watcher.until_rescanned("events were lost")
            watcher.until(lambda: len(watcher.known) == 3000, "3,000 files")
            assert watcher.inbox.recovered_by_rescan > 0
    finally:
        limit.write_text(usual)


def test_a_scan_of_many_files_keeps_memory_flat(root):
    for number in range(5_000):
        os.mknod(root / f"{number}.jpg", 0o600 | stat.S_IFREG)
    box = Inbox(root, recursive=True, rescan_s=3600)
    tracemalloc.start()
    try:
        count = 0
        while box.next(lambda _: False) is not None:
            count += 1
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 5_000
    assert peak < 200_000  # a list of them would take some 1.5 MB


def test_only_what_may_be_a_photo_is_handed_out(root):
    (root / "a.jpg").write_bytes(b"photo")
    (root / "b.jpg.part").write_bytes(b"pho")
    (root / "folder.jpg").mkdir()
    (root / ".hidden").mkdir()
    (root / ".hidden" / "c.jpg").write_bytes(b"photo")
    (root / "ours").mkdir()
    (root / "ours" / "d.jpg").write_bytes(b"photo")
    (root / "deep").mkdir()
    (root / "deep" / "e.jpg").write_bytes(b"photo")
    (root / "deep" / "loop").symlink_to(root)
    (root / "link.jpg").symlink_to("/etc/passwd")
    os.mkfifo(root / "fifo.jpg")

    def names(**options):
        return {entry.name for entry in files_below(root, **options)}

    assert names(recursive=True, skip=frozenset({root / "ours"})) == {"a.jpg", "e.jpg"}
    assert names(recursive=False) == {"a.jpg"}


@pytest.mark.faults
def test_a_scan_survives_folders_that_go_away_under_it(root):
    for number in range(50):
        (root / str(number)).mkdir()
        (root / str(number) / "a.jpg").write_bytes(b"photo")
    scan = files_below(root, recursive=True)
    next(scan)
    shutil.rmtree(root)
    assert len(list(scan)) < 50
    assert list(files_below(root, recursive=True)) == []


# The watched folder itself


def test_a_folder_removed_is_a_problem_and_made_again_it_is_watched_again(root):
    with watching(root) as watcher:
        root.rmdir()
        watcher.until(lambda: watcher.inbox.health.problem, "the problem")
        assert "No such file" in watcher.inbox.health.problem
        root.mkdir()
        watcher.until(lambda: watcher.inbox.health.problem is None, "the end of the problem")
        watcher.until_rescanned("the folder was replaced")
        (root / "a.jpg").write_bytes(b"photo")
        watcher.until_seen(root / "a.jpg", finished=True)


def test_a_folder_replaced_between_two_looks_is_noticed(root, tmp_path):
    with watching(root) as watcher:
        root.rename(tmp_path / "aside")
        root.mkdir()
        (root / "before.jpg").write_bytes(b"photo")  # no event tells of this one
        watcher.until_seen(root / "before.jpg")
        (root / "after.jpg").write_bytes(b"photo")
        watcher.until_seen(root / "after.jpg", finished=True)
        (tmp_path / "aside" / "elsewhere.jpg").write_bytes(b"photo")
        watcher.until_seen(root / "after.jpg")
        assert {path.parent for path in watcher.known} == {root}


def test_a_folder_that_is_missing_at_the_start_is_waited_for(tmp_path):
    root = tmp_path / "later"
    with watching(root) as watcher:
        assert "No such file" in watcher.inbox.health.problem
        assert watcher.arrivals == []
        root.mkdir()
        (root / "a.jpg").write_bytes(b"photo")
        watcher.until_seen(root / "a.jpg")


@pytest.mark.faults
def test_another_file_system_mounted_over_the_folder_is_noticed_and_its_unmount_too(root):
    with watching(root) as watcher:
        with faultstage.file_system(root):
            (root / "mounted.jpg").write_bytes(b"photo")
            watcher.until_seen(root / "mounted.jpg")
            (root / "watched.jpg").write_bytes(b"photo")
            watcher.until_seen(root / "watched.jpg", finished=True)
        watcher.inbox.last_rescan = None
        watcher.until_rescanned("the folder was replaced")
        (root / "below.jpg").write_bytes(b"photo")
        watcher.until_seen(root / "below.jpg", finished=True)


def test_a_watch_whose_thread_died_is_armed_anew(root):
    with watching(root) as watcher:
        for emitter in watcher.inbox._observer.emitters:
            emitter.stop()
            emitter.join(PATIENCE)
        (root / "missed.jpg").write_bytes(b"photo")
        watcher.until_seen(root / "missed.jpg")
        (root / "a.jpg").write_bytes(b"photo")
        watcher.until_seen(root / "a.jpg", finished=True)


def test_a_healthy_folder_is_looked_at_once_a_second_at_most(root, monkeypatch):
    with watching(root) as watcher:
        looks = []
        monkeypatch.setattr(os, "stat", looks.append)
        for _ in range(100):
            watcher.inbox.check_health()
        assert looks == []


def test_nothing_is_left_running_after_the_end(root):
    before = set(threading.enumerate())
    with watching(root):
        assert set(threading.enumerate()) > before
    assert {thread for thread in threading.enumerate() if thread.is_alive()} <= before


# How it is watched


def test_on_a_local_file_system_the_kernel_tells(root):
    with watching(root) as watcher:
        health = watcher.inbox.health
        assert (health.method, health.problem) == ("native", None)


def test_polling_finds_files_where_it_is_asked_for(root, monkeypatch):
    monkeypatch.setattr(inbox, "POLLING_INTERVAL", 0.05)
    with watching(root, watch="polling") as watcher:
        assert (watcher.inbox.health.method, watcher.inbox.health.why) == (
            "polling",
            "set in the configuration",
        )
        (root / "a.jpg").write_bytes(b"photo")
        watcher.until_seen(root / "a.jpg")


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs"])
def test_on_a_network_file_system_polling_is_chosen_and_said(root, monkeypatch, kind):
    monkeypatch.setattr(inbox, "file_system", lambda _: kind)
    with watching(root) as watcher:
        assert watcher.inbox.health.method == "polling"
        assert kind in watcher.inbox.health.why


@contextmanager
def no_more(limit):
    """The machine gives out no more inotify watches, or instances."""
    file = Path("/proc/sys/fs/inotify") / limit
    if os.geteuid() != 0 or not os.access(file, os.W_OK):
        pytest.skip(f"lowering fs.inotify.{limit} needs root")
    usual = file.read_text()
    file.write_text("0")
    try:
        yield
    finally:
        file.write_text(usual)


@pytest.mark.faults
@pytest.mark.parametrize("limit", ["max_user_watches", "max_user_instances"])
def test_where_inotify_is_exhausted_polling_is_chosen_and_said(root, monkeypatch, limit):
    monkeypatch.setattr(inbox, "POLLING_INTERVAL", 0.05)
    with no_more(limit), watching(root) as watcher:
        assert watcher.inbox.health.method == "polling"
        assert limit in watcher.inbox.health.why
        (root / "a.jpg").write_bytes(b"photo")
        watcher.until_seen(root / "a.jpg")


@pytest.mark.faults
def test_where_inotify_is_exhausted_and_nothing_else_is_wanted_the_fault_is_told(root):
    with no_more("max_user_instances"):
        box = Inbox(root, recursive=True, rescan_s=3600, watch="native")
        try:
            with pytest.raises(OSError) as caught:
                box.start()
        finally:
            box.stop()
        assert caught.value.errno == errno.EMFILE


def test_the_type_of_a_file_system_is_known(tmp_path, other_disk):
    assert file_system(other_disk) == "tmpfs"
    assert file_system(Path("/proc")) == "proc"
    assert (
        file_system(tmp_path) not in {"", "tmpfs", "proc"}
        or tmp_path.stat().st_dev == other_disk.stat().st_dev
    )
    assert file_system(tmp_path / "gone") == ""


def test_a_file_that_goes_away_during_a_scan_is_no_error(root):
    box = Inbox(root, recursive=True, rescan_s=3600)
    assert box.next(lambda _: False) is None
    (root / "a.jpg").write_bytes(b"photo")
    scan = files_below(root, recursive=True)
    entry = next(scan)
    (root / "a.jpg").unlink()
    with suppress(FileNotFoundError):
        entry.stat()
    assert inbox._age(entry) == 0.0


def test_a_rescan_that_is_always_due_does_not_keep_the_loop_from_its_other_work(tmp_path):
    box = inbox.Inbox(tmp_path, recursive=True, rescan_s=0.0)
    for _ in range(3):
        assert box.next(lambda _path: False) is None
    (tmp_path / "photo.jpg").touch()
    assert box.next(lambda _path: False) is not None
