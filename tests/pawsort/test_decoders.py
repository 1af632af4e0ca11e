import collections
import contextlib
import errno
import hashlib
import itertools
import os
import resource
import signal
import struct
import subprocess
import sys
import textwrap
import threading
import time
import zlib

import cv2
import numpy as np
import psutil
import pytest

import drawn
import pawsort
from pawsort import decoder_process, decoders, errors, image
from pawsort.decoders import Decoded, DecoderPool, Undecodable, Unreadable

RENDER = image.Render(size=64, views=("centre", "whole-flipped"), keep_short_side=80)
LIMITS = image.Limits(seconds=30)
_numbers = itertools.count()
PATIENCE = 60.0  # seconds; a test that waits longer has failed


def opened(tmp_path, data, name=None):
    path = tmp_path / (name or f"photo-{next(_numbers)}")
    path.write_bytes(data)
    return os.open(path, os.O_RDONLY)


def collect(pool, count):
    """Poll until `count` results have come; by ticket."""
    results = {}
    until = time.monotonic() + PATIENCE
    while len(results) < count:
        assert time.monotonic() < until, f"{len(results)} of {count} results after {PATIENCE} s"
        for result in pool.poll(0.2):
            assert result.ticket not in results, "a ticket came back twice"
            results[result.ticket] = result
    return results


def until_ready(pool):
    until = time.monotonic() + PATIENCE
    while not all(worker.ready for worker in pool._workers) or len(pool.pids) < pool._size:
        assert time.monotonic() < until, pool.fault
        with contextlib.suppress(errors.MachineError):
            pool._results += pool.poll(0.05)


def decoding(worker):
    """The ticket whose bytes the worker is decoding at this moment, or None."""
    if (
        worker.queue
        and worker.process.begun > worker.sent - len(worker.queue)
        and not worker.process.is_reading
    ):
        return worker.queue[0].ticket
    return None


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def slow_png(seed=0):
    """A picture that takes a worker a good part of a second: the compressor's worst case, many pixels."""
    rows = b"".join(b"\4" + bytes((row + i) % 256 for i in range(60)) * 150 for row in range(3000))
    header = struct.pack(">IIBBBBB", 3000, 3000, 8, 2, 0, 0, 0)
    body = zlib.compress(rows, 1)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"tEXt", b"seed\0%d" % seed)
        + chunk(b"IDAT", body)
        + chunk(b"IEND", b"")
    )


def killer_png():
    """An animated PNG with a frame of no data, whole by its chunks: OpenCV 4.12 to 5.0 die of it."""
    rows = zlib.compress(bytes((128 * 4 + 1) * 64))
    frame = struct.pack(">IIIIIHHBB", 0, 128, 64, 0, 0, 1, 10, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 128, 64, 8, 6, 0, 0, 0))
        + chunk(b"acTL", struct.pack(">II", 2, 0))
        + chunk(b"IDAT", rows)
        + chunk(b"fcTL", frame)
        + chunk(b"fdAT", b"")
        + chunk(b"IEND", b"")
    )


def kill_decoder_of(pool, ticket):
    """Kill the worker that decodes a photo, in the middle of it."""
    until = time.monotonic() + PATIENCE
    while not (workers := [worker for worker in pool._workers if decoding(worker) == ticket]):
        assert time.monotonic() < until
    os.kill(workers[0].process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def killer():
    """Bytes that kill this OpenCV, tried in a process of their own."""
    code = "import sys, cv2, numpy as np; cv2.imdecode(np.frombuffer(sys.stdin.buffer.read(), np.uint8), -1)"
    ended = subprocess.run([sys.executable, "-c", code], input=killer_png(), capture_output=True, check=False)
    if ended.returncode >= 0:
        pytest.skip(f"OpenCV {cv2.__version__} survives the picture that killed 4.12 to 5.0")
    return killer_png()


@pytest.fixture(scope="module")
def pool():
    """For tests that leave its workers as they are."""
    with DecoderPool(2, RENDER, LIMITS) as pool:
        until_ready(pool)
        yield pool


@pytest.fixture
def victims():
    """A pool whose workers die in the test."""
    with DecoderPool(2, RENDER, LIMITS) as pool:
        until_ready(pool)
        yield pool


# -- The main job -----------------------------------------------------------------------------------


def test_every_photo_comes_back_once_as_the_preprocessing_makes_it(pool, tmp_path):
    photos = [drawn.encode(drawn.draw("circles", seed, (200 + seed, 150)), ".png") for seed in range(40)]
    results = {}
    submitted = 0
    while len(results) < len(photos):
        while pool.free and submitted < len(photos):
            pool.submit(submitted, opened(tmp_path, photos[submitted], f"{submitted}.txt"))
            submitted += 1
        for result in pool.poll(PATIENCE):
            assert result.ticket not in results
            results[result.ticket] = result
    for ticket, data in enumerate(photos):
        result = results[ticket]
        assert isinstance(result, Decoded)
        photo = image.decode(data, LIMITS, RENDER.short_side)
        assert np.array_equal(result.views, image.views(photo.pixels, RENDER.views, 64))
        assert np.array_equal(result.whole, image.whole(photo.pixels, 80))
        assert result.header == photo.header
        assert (result.sha256, result.bytes) == (hashlib.sha256(data).hexdigest(), len(data))
        assert 0 < result.decode_ms < 10_000
    assert pool.deaths == 0
    assert pool.busy == 0


def test_a_pool_without_a_whole_picture_hands_back_none(tmp_path):
    with DecoderPool(1, image.Render(size=32), LIMITS) as pool:
        pool.submit(7, opened(tmp_path, drawn.encode(drawn.draw("circles", 1))))
        result = collect(pool, 1)[7]
    assert result.whole is None
    assert result.views.shape == (1, 32, 32, 3)


def test_a_pool_without_views_hands_back_the_whole_picture(tmp_path):
    with DecoderPool(1, image.Render(size=32, views=(), keep_short_side=50), LIMITS) as pool:
        pool.submit(7, opened(tmp_path, drawn.encode(drawn.draw("circles", 1, (200, 100)))))
        result = collect(pool, 1)[7]
    assert result.whole.shape == (50, 100, 3)
    assert result.views.shape == (0, 32, 32, 3)


def test_results_stay_what_they_are_when_their_slots_are_used_again(tmp_path):
    photos = [drawn.encode(drawn.draw("squares", seed)) for seed in range(30)]
    with DecoderPool(1, RENDER, LIMITS, depth=2) as pool:
        results = {}
        for ticket, data in enumerate(photos):
            while not pool.free:
                results |= {result.ticket: result for result in pool.poll(PATIENCE)}
            pool.submit(ticket, opened(tmp_path, data))
        results |= collect(pool, len(photos) - len(results))
    for ticket, data in enumerate(photos):
        pixels = image.decode(data, LIMITS, RENDER.short_side).pixels
        assert np.array_equal(results[ticket].views, image.views(pixels, RENDER.views, 64))


def test_a_file_is_read_from_its_start_and_closed(pool, tmp_path):
    descriptor = opened(tmp_path, drawn.encode(drawn.draw("circles", 1)))
    os.lseek(descriptor, 100, os.SEEK_SET)
    pool.submit(1, descriptor)
    assert isinstance(collect(pool, 1)[1], Decoded)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_a_full_pool_says_so_and_leaves_the_file_to_its_owner(pool, tmp_path):
    data = drawn.encode(drawn.draw("circles", 1))
    count = pool.free
    assert count >= 4
    for ticket in range(count):
        pool.submit(ticket, opened(tmp_path, data))
    descriptor = opened(tmp_path, data)
    with pytest.raises(ValueError, match="full"):
        pool.submit(99, descriptor)
    os.fstat(descriptor)
    os.close(descriptor)
    assert len(collect(pool, count)) == count
    assert pool.free == count


def test_a_caller_can_wait_in_a_poll_of_its_own(pool, tmp_path):
    import select

    poller = select.poll()
    for fileno in pool.filenos:
        poller.register(fileno, select.POLLIN)
    assert poller.poll(0) == []
    pool.submit(1, opened(tmp_path, drawn.encode(drawn.draw("circles", 1))))
    results = []
    until = time.monotonic() + PATIENCE
    while not results and time.monotonic() < until:
        assert poller.poll(PATIENCE * 1000), "the pool's descriptor never became readable"
        results = pool.poll(0)
    assert isinstance(results[0], Decoded)


def test_no_descriptor_is_left_behind(tmp_path):
    before = set(os.listdir("/proc/self/fd"))
    with DecoderPool(2, RENDER, LIMITS) as pool:
        for ticket in range(6):
            pool.submit(ticket, opened(tmp_path, drawn.encode(drawn.draw("circles", ticket))))
        os.kill(pool.pids[0], signal.SIGKILL)
        collect(pool, 6)
        pool.submit(9, opened(tmp_path, slow_png()))  # still there when the pool is closed
    assert set(os.listdir("/proc/self/fd")) == before


def test_the_parent_loads_no_opencv():
    code = "import sys, pawsort.decoders; sys.exit('cv2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=root_of_package()).returncode == 0


def root_of_package():
    return os.path.dirname(os.path.dirname(decoders.__file__))


def test_what_lies_in_the_current_folder_is_never_imported(tmp_path, monkeypatch):
    for name in ("cv2", "numpy", "json", "pawsort"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('taken over')")
    monkeypatch.chdir(tmp_path)
    with DecoderPool(1, RENDER, LIMITS) as pool:
        pool.submit(1, opened(tmp_path, drawn.encode(drawn.draw("circles", 1))))
        assert isinstance(collect(pool, 1)[1], Decoded)


def test_what_codecs_complain_about_is_not_on_the_parents_terminal(pool, tmp_path, capfd):
    data = drawn.encode(drawn.photo(1, 320, 240))
    pool.submit(1, opened(tmp_path, data[: len(data) // 2] + b"\xff\xd9"))
    pool.submit(
        2,
        opened(
            tmp_path, drawn.encode(drawn.draw("circles", 1), ".tiff").replace(b"\x01\x01", b"\x01\x77", 1)
        ),
    )
    collect(pool, 2)
    assert capfd.readouterr() == ("", "")


# -- The photo's own faults -------------------------------------------------------------------------


def test_what_is_no_picture_comes_back_with_its_reason_hash_and_size(pool, tmp_path):
    pool.submit(1, opened(tmp_path, b"just text", "photo.jpg"))
    result = collect(pool, 1)[1]
    assert isinstance(result, Undecodable)
    assert (result.error.reason, result.bytes) == ("not_an_image", 9)
    assert result.sha256 == hashlib.sha256(b"just text").hexdigest()


def test_an_empty_file_is_empty(pool, tmp_path):
    pool.submit(1, opened(tmp_path, b""))
    assert collect(pool, 1)[1].error.reason == "empty"


@pytest.mark.parametrize(
    ("where", "progressive"),
    [
        ("cut, with an end mark", 0),
        ("cut, with an end mark", 1),
        ("hole in the middle", 0),
        ("hole in the middle", 1),
        ("nothing but an end after the half", 0),
    ],
)
def test_a_jpeg_with_missing_data_inside_is_truncated_although_its_end_is_there(
    pool, tmp_path, where, progressive
):
    data = drawn.encode(drawn.photo(3, 640, 480), ".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, progressive)
    half = len(data) // 2
    broken = {
        "cut, with an end mark": data[:half] + b"\xff\xd9",
        "hole in the middle": data[:half] + bytes(len(data) // 3) + data[half + len(data) // 3 :],
        "nothing but an end after the half": data[:half] + bytes(half - 2) + b"\xff\xd9",
    }[where]
    pool.submit(1, opened(tmp_path, broken))
    pool.submit(2, opened(tmp_path, data))
    results = collect(pool, 2)
    assert results[1].error.reason == "truncated", results[1]
    assert isinstance(results[2], Decoded)


def test_a_few_stray_bytes_in_a_jpeg_do_no_harm(pool, tmp_path):
    data = drawn.encode(drawn.photo(3, 640, 480))
    assert data.endswith(b"\xff\xd9")
    pool.submit(1, opened(tmp_path, data[:-2] + bytes(200) + b"\xff\xd9"))
    assert isinstance(collect(pool, 1)[1], Decoded)


@pytest.mark.skipif(
    cv2.__version__ < "5", reason="OpenCV before 5 keeps to itself what libtiff complains about"
)
def test_a_damaged_strip_of_a_tiff_is_no_picture(pool, tmp_path):
    data = bytearray(drawn.encode(drawn.photo(3, 640, 480), ".tiff", cv2.IMWRITE_TIFF_COMPRESSION, 5))
    data[len(data) // 2 : len(data) // 2 + 500] = bytes(500)
    pool.submit(1, opened(tmp_path, bytes(data)))
    assert collect(pool, 1)[1].error.reason in {"truncated", "corrupt"}


def test_too_many_bytes_are_refused_unread(tmp_path):
    path = tmp_path / "sparse.jpg"
    with path.open("wb") as file:
        file.truncate(10 << 30)
    with DecoderPool(1, RENDER, image.Limits(bytes=1 << 20)) as pool:
        pool.submit(1, os.open(path, os.O_RDONLY))
        result = collect(pool, 1)[1]
    assert (result.error.reason, result.sha256, result.bytes) == ("too_large", None, 10 << 30)


@pytest.mark.parametrize("kind", ["png", "jpeg", "progressive jpeg", "tiff", "webp"])
def test_a_photo_that_takes_too_much_memory_is_too_large_and_costs_no_worker(tmp_path, kind):
    picture = np.zeros((6000, 6000, 3), np.uint8)
    flags = (cv2.IMWRITE_JPEG_PROGRESSIVE, 1) if kind.startswith("progressive") else ()
    data = drawn.encode(picture, "." + kind.split()[-1], *flags)
    render = image.Render(size=64, keep_short_side=3500)  # no reduced decoding
    with DecoderPool(1, render, image.Limits(memory_bytes=64 << 20)) as pool:
        until_ready(pool)
        pool.submit(1, opened(tmp_path, data))
        pool.submit(2, opened(tmp_path, drawn.encode(drawn.draw("circles", 1))))
        results = collect(pool, 2)
    assert results[1].error.reason == "too_large", results[1]
    assert isinstance(results[2], Decoded)
    assert pool.deaths == 0


def test_a_file_that_grows_while_it_is_read_has_changed(tmp_path):
    path = tmp_path / "growing"
    with path.open("wb") as file:
        file.truncate(200 << 20)
    stop = threading.Event()

    def grow():
        with path.open("ab") as file:
            while not stop.is_set():
                file.write(b"x")
                file.flush()

    writer = threading.Thread(target=grow)
    with DecoderPool(1, RENDER, LIMITS) as pool:
        until_ready(pool)
        writer.start()
        try:
            pool.submit(1, os.open(path, os.O_RDONLY))
            result = collect(pool, 1)[1]
        finally:
            stop.set()
            writer.join()
    assert result.error.reason == "changed"
    assert result.sha256 is None
    assert result.error.reason in errors.PASSING_REASONS


# -- The machine's faults ---------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "code"), [("/proc/self/mem", errno.EIO), ("/", errno.EISDIR)])
def test_a_file_that_the_machine_cannot_read_is_not_the_photos_fault(pool, path, code):
    pool.submit(1, os.open(path, os.O_RDONLY))
    result = collect(pool, 1)[1]
    assert isinstance(result, Unreadable)
    assert isinstance(result.error, errors.MachineError)
    assert result.error.__cause__.errno == code


def test_a_pool_whose_first_worker_cannot_be_started_says_so_at_once(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    before = set(os.listdir("/proc/self/fd"))
    with (
        pytest.raises(errors.MachineError, match="cannot start a decoder process"),
        DecoderPool(2, RENDER, LIMITS),
    ):
        pass
    assert set(os.listdir("/proc/self/fd")) == before


@contextlib.contextmanager
def no_more_descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + 1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_workers_that_cannot_be_replaced_are_missed_and_replaced_later(tmp_path, monkeypatch):
    monkeypatch.setattr(decoders, "NO_WORKER_SECONDS", 0.5)
    monkeypatch.setattr(decoders, "_LONGEST_PAUSE_SECONDS", 0.2)
    with DecoderPool(1, RENDER, LIMITS) as pool:
        until_ready(pool)
        pool.submit(1, opened(tmp_path, slow_png()))
        pool.submit(2, opened(tmp_path, drawn.encode(drawn.draw("circles", 1))))
        with no_more_descriptors():
            os.kill(pool.pids[0], signal.SIGKILL)
            with pytest.raises(errors.MachineError, match="Too many open files"):
                collect(pool, 1)
            assert "Too many open files" in str(pool.fault)
            assert pool.busy == 2
        until_ready(pool)
        assert {type(result) for result in collect(pool, 2).values()} == {Decoded}
        assert pool.fault is None


def fake_worker(tmp_path, monkeypatch, code):
    """Have the pool start another program as its workers."""
    (tmp_path / "fake_worker.py").write_text(textwrap.dedent(code))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(decoder_process, "WORKER_MODULE", "fake_worker")


def test_workers_that_die_while_starting_are_the_machines_fault_told_in_their_words(tmp_path, monkeypatch):
    monkeypatch.setattr(decoders, "NO_WORKER_SECONDS", 0.3)
    fake_worker(tmp_path, monkeypatch, "raise SystemExit('the library is broken')")
    with DecoderPool(2, RENDER, LIMITS) as pool:
        pool.submit(1, opened(tmp_path, drawn.encode(drawn.draw("circles", 1))))
        with pytest.raises(errors.MachineError, match="the library is broken"):
            collect(pool, 1)
        assert pool.busy == 1
        assert pool.deaths < 20, "it pauses between its attempts"
        monkeypatch.undo()
        assert isinstance(collect(pool, 1)[1], Decoded)


def test_a_pawsort_installed_while_an_older_one_runs_is_not_blamed_on_photos(tmp_path, monkeypatch):
    monkeypatch.setattr(decoders, "NO_WORKER_SECONDS", 0.3)
    monkeypatch.setattr(pawsort, "__version__", "0.0.9")
    with DecoderPool(1, RENDER, LIMITS) as pool:
        pool.submit(1, opened(tmp_path, drawn.encode(drawn.draw("circles", 1))))
        with pytest.raises(errors.MachineError, match="was installed while 0.0.9 runs; restart it"):
            collect(pool, 1)
        assert pool.busy == 1


def test_a_worker_that_talks_nonsense_is_replaced_and_its_photo_given_up_after_the_second_time(
    tmp_path, monkeypatch
):
    fake_worker(
        tmp_path,
        monkeypatch,
        """
        import json, mmap, socket, sys
        from pawsort import exchange
        settings = json.loads(sys.argv[1])
        parent = socket.socket(fileno=settings["socket"])
        memory = mmap.mmap(settings["memory"], mmap.PAGESIZE)
        parent.send(b'{"ready":true}')
        while parent.recv(4096):
            exchange.BEGUN.pack_into(memory, 0, 1)
            parent.send(b'{"ticket":')
        """,
    )
    with DecoderPool(1, RENDER, LIMITS) as pool:
        pool.submit(1, opened(tmp_path, b"whatever"))
        result = collect(pool, 1)[1]
    assert result.error.reason == "decoder_died"
    assert pool.deaths == 2


def test_a_bug_of_ours_is_told_in_full_and_costs_one_photo_only(tmp_path, monkeypatch):
    fake_worker(
        tmp_path,
        monkeypatch,
        """
        import sys
        from pawsort import decode_worker, image
        def views(*_): raise RuntimeError("a bug, for this test")
        image.views = views
        sys.exit(decode_worker.main(sys.argv[1]))
        """,
    )
    with DecoderPool(1, RENDER, LIMITS) as pool:
        pool.submit(1, opened(tmp_path, drawn.encode(drawn.draw("circles", 1))))
        result = collect(pool, 1)[1]
    assert result.error.reason == "decoder_died"
    assert "a bug, for this test" in str(result.error)
    assert "Traceback" in str(result.error)
    assert pool.deaths == 0


# -- Crashes and hangs ------------------------------------------------------------------------------


def test_a_photo_that_kills_the_decoder_is_given_up_after_its_second_try(victims, tmp_path, killer):
    good = drawn.encode(drawn.draw("circles", 1))
    for ticket in range(10):
        victims.submit(ticket, opened(tmp_path, killer if ticket == 3 else good, f"{ticket}"))
    results = collect(victims, 10)
    assert results[3].error.reason == "decoder_died"
    assert "SIGSEGV" in str(results[3].error)
    assert (results[3].sha256, results[3].bytes) == (hashlib.sha256(killer).hexdigest(), len(killer))
    assert {type(result) for ticket, result in results.items() if ticket != 3} == {Decoded}
    assert victims.deaths == 2
    until_ready(victims)


def test_many_photos_that_kill_the_decoder_hold_up_nothing(victims, tmp_path, killer):
    good = drawn.encode(drawn.draw("circles", 1))
    results = {}
    for ticket in range(24):
        while not victims.free:
            results |= {result.ticket: result for result in victims.poll(PATIENCE)}
        victims.submit(ticket, opened(tmp_path, killer if ticket % 4 == 0 else good))
    results |= collect(victims, 24 - len(results))
    kinds = collections.Counter(type(result) for result in results.values())
    assert kinds == {Undecodable: 6, Decoded: 18}
    assert victims.deaths == 12


def test_a_worker_killed_by_somebody_else_costs_no_photo(victims, tmp_path):
    slow = slow_png()
    first = set(victims.pids)
    for ticket in range(6):
        victims.submit(
            ticket, opened(tmp_path, slow if ticket == 0 else drawn.encode(drawn.draw("circles", ticket)))
        )
    kill_decoder_of(victims, 0)
    assert {type(result) for result in collect(victims, 6).values()} == {Decoded}
    assert victims.deaths == 1
    until_ready(victims)
    assert len(victims.pids) == 2
    assert len(first & set(victims.pids)) == 1


def test_workers_that_die_idle_are_replaced_and_no_photo_is_blamed(victims, tmp_path):
    for pid in victims.pids:
        os.kill(pid, signal.SIGKILL)
    victims.submit(1, opened(tmp_path, drawn.encode(drawn.draw("circles", 1))))
    assert isinstance(collect(victims, 1)[1], Decoded)
    until_ready(victims)
    assert victims.fault is None


def test_a_photo_that_was_not_begun_is_not_suspected(tmp_path):
    with DecoderPool(1, RENDER, LIMITS) as pool:
        pool.submit(0, opened(tmp_path, drawn.encode(drawn.draw("circles", 1))))
        collect(pool, 1)
        os.kill(pool.pids[0], signal.SIGSTOP)
        pool.submit(1, opened(tmp_path, drawn.encode(drawn.draw("circles", 1))))
        os.kill(pool.pids[0], signal.SIGKILL)
        until = time.monotonic() + PATIENCE
        while not pool.deaths:
            assert time.monotonic() < until
            assert pool.poll(0.01) == []
        jobs = [*pool._waiting, *pool._suspects, *(job for worker in pool._workers for job in worker.queue)]
        assert [job.suspect for job in jobs] == [False]
        assert isinstance(collect(pool, 1)[1], Decoded)


def test_a_suspect_is_tried_again_alone(tmp_path):
    with DecoderPool(1, RENDER, LIMITS) as pool:
        until_ready(pool)
        pool.submit(0, opened(tmp_path, slow_png()))
        for ticket in range(1, 5):
            pool.submit(ticket, opened(tmp_path, drawn.encode(drawn.draw("circles", ticket))))
        kill_decoder_of(pool, 0)
        results = {}
        queued_with_suspect = set()
        while len(results) < 5:
            results |= {result.ticket: result for result in pool.poll(0.02)}
            for worker in pool._workers:
                if any(job.suspect for job in worker.queue):
                    queued_with_suspect.add(len(worker.queue))
    assert queued_with_suspect == {1}
    assert {type(result) for result in results.values()} == {Decoded}


def test_a_photo_that_hangs_the_decoder_is_given_up_after_its_second_try(tmp_path):
    good = drawn.encode(drawn.draw("circles", 1))
    with DecoderPool(2, RENDER, image.Limits(seconds=1.0)) as pool:
        until_ready(pool)
        hanging, _ = pool.pids
        pool.submit(0, opened(tmp_path, slow_png()))
        for ticket in range(1, 8):
            pool.submit(ticket, opened(tmp_path, good))
        results = {}
        began = time.monotonic()
        while 0 not in results:
            assert time.monotonic() - began < PATIENCE
            for worker in pool._workers:
                if decoding(worker) == 0:
                    os.kill(worker.process.pid, signal.SIGSTOP)
            results |= {result.ticket: result for result in pool.poll(0.01)}
        results |= collect(pool, 8 - len(results))
        assert hanging not in pool.pids
    assert results[0].error.reason == "decoder_timed_out"
    assert {type(result) for ticket, result in results.items() if ticket} == {Decoded}
    assert 2.0 <= time.monotonic() - began < 30
    assert pool.deaths == 2


def test_a_hang_that_passes_costs_no_photo(tmp_path):
    with DecoderPool(1, RENDER, image.Limits(seconds=1.0)) as pool:
        until_ready(pool)
        os.kill(pool.pids[0], signal.SIGSTOP)
        for ticket in range(4):
            pool.submit(ticket, opened(tmp_path, drawn.encode(drawn.draw("circles", ticket))))
        assert {type(result) for result in collect(pool, 4).values()} == {Decoded}
        assert pool.deaths == 1


def test_the_clock_of_a_photo_starts_when_its_turn_comes(tmp_path, monkeypatch):
    fake_worker(
        tmp_path,
        monkeypatch,
        """
        import sys, time
        from pawsort import decode_worker, image
        decode = image.decode
        def slow(*arguments):
            time.sleep(0.4)
            return decode(*arguments)
        image.decode = slow
        sys.exit(decode_worker.main(sys.argv[1]))
        """,
    )
    # Each alone fits into the limit, all of them together do not.
    with DecoderPool(1, RENDER, image.Limits(seconds=1.6)) as pool:
        until_ready(pool)
        for ticket in range(6):
            pool.submit(ticket, opened(tmp_path, drawn.encode(drawn.draw("circles", ticket))))
        assert {type(result) for result in collect(pool, 6).values()} == {Decoded}
    assert pool.deaths == 0


def test_a_worker_that_leaks_is_replaced_and_costs_no_photo(tmp_path, monkeypatch):
    fake_worker(
        tmp_path,
        monkeypatch,
        """
        import sys
        from pawsort import decode_worker, image
        leak, decode = [], image.decode
        def leaking(*arguments):
            leak.append(b"x" * (8 << 20))
            return decode(*arguments)
        image.decode = leaking
        sys.exit(decode_worker.main(sys.argv[1]))
        """,
    )
    data = drawn.encode(drawn.draw("circles", 1))
    with DecoderPool(1, RENDER, LIMITS) as pool:
        results = {}
        for ticket in range(100):
            while not pool.free:
                results |= {result.ticket: result for result in pool.poll(PATIENCE)}
            pool.submit(ticket, opened(tmp_path, data))
        results |= collect(pool, 100 - len(results))
        assert pool.fault is None
    assert {type(result) for result in results.values()} == {Decoded}
    assert pool.deaths == 3


def test_a_read_that_hangs_is_the_machines_fault(tmp_path, monkeypatch):
    fake_worker(
        tmp_path,
        monkeypatch,
        """
        import sys, time
        from pawsort import decode_worker
        decode_worker._read = lambda *_: time.sleep(600)
        sys.exit(decode_worker.main(sys.argv[1]))
        """,
    )
    with DecoderPool(1, RENDER, image.Limits(seconds=0.5)) as pool:
        pool.submit(1, opened(tmp_path, drawn.encode(drawn.draw("circles", 1))))
        result = collect(pool, 1)[1]
    assert isinstance(result, Unreadable)
    assert "reading it was not done after 0.5 s" in str(result.error)


# -- Parent and child -------------------------------------------------------------------------------


def test_signals_of_a_terminal_or_service_manager_leave_the_workers_alone(pool, tmp_path):
    for pid in pool.pids:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(pid, signum)
        assert os.getpgid(pid) != os.getpgid(0)
        assert os.getsid(pid) == os.getsid(0)
    pool.submit(1, opened(tmp_path, drawn.encode(drawn.draw("circles", 1))))
    assert isinstance(collect(pool, 1)[1], Decoded)
    assert pool.deaths == 0


@pytest.mark.parametrize("state", ["idle", "stopped"])
def test_no_worker_outlives_its_parent(state):
    code = """
        import sys, time
        from pawsort.decoders import DecoderPool
        from pawsort.image import Limits, Render
        with DecoderPool(2, Render(size=32), Limits()) as pool:
            while not all(worker.ready for worker in pool._workers):
                pool.poll(0.05)
            print(*pool.pids, flush=True)
            time.sleep(600)
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root_of_package(),
    )
    with parent:
        workers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        if state == "stopped":
            for worker in workers:
                worker.suspend()
        parent.kill()
    _, alive = psutil.wait_procs(workers, timeout=PATIENCE)
    assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []


def test_a_worker_is_the_first_to_go_when_memory_runs_out(pool):
    for pid in pool.pids:
        with open(f"/proc/{pid}/oom_score_adj") as file:
            assert int(file.read()) >= 500


# -- Real photos ------------------------------------------------------------------------------------


@pytest.mark.real
def test_hostile_files_end_with_a_reason_each_and_the_pool_goes_on(shared):
    paths = sorted((shared / "data" / "hostile").iterdir())
    assert len(paths) == 94
    results = {}
    with DecoderPool(2, image.Render(size=224), image.Limits(seconds=10)) as pool:
        for ticket, path in enumerate(paths):
            while not pool.free:
                results |= {result.ticket: result for result in pool.poll(PATIENCE)}
            pool.submit(ticket, os.open(path, os.O_RDONLY))
        results |= collect(pool, len(paths) - len(results))
    by_name = {path.name: results[ticket] for ticket, path in enumerate(paths)}
    for path in paths:
        assert not isinstance(by_name[path.name], Unreadable), path
        if isinstance(by_name[path.name], Undecodable):
            assert by_name[path.name].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    reasons = {
        name: "decoded" if isinstance(result, Decoded) else result.error.reason
        for name, result in by_name.items()
    }
    for name, reason in reasons.items():
        if name.endswith((".txt", ".json", ".md", ".t", ".mat", ".pdf", ".tokens")):
            assert reason == "not_an_image", name
        if name.endswith((".jp2", ".j2k", ".sun", ".miff", ".ff", ".cur", ".jxl", ".MSP")):
            assert reason == "unsupported_format", name
        if name.endswith(".crash"):
            assert reason in {"decoder_died", "corrupt"}, name
    assert sum(reason == "decoded" for reason in reasons.values()) > 35


@pytest.mark.real
def test_real_photos_come_as_the_preprocessing_makes_them(shared):
    paths = sorted((shared / "data" / "animals").glob("*/*"))[::100]
    render = image.Render(size=224, views=("centre", "centre-flipped"))
    results = {}
    with DecoderPool(2, render, LIMITS) as pool:
        for ticket, path in enumerate(paths):
            while not pool.free:
                results |= {result.ticket: result for result in pool.poll(PATIENCE)}
            pool.submit(ticket, os.open(path, os.O_RDONLY))
        results |= collect(pool, len(paths) - len(results))
    for ticket, path in enumerate(paths):
        photo = image.decode(path.read_bytes(), LIMITS, 256)
        assert np.array_equal(results[ticket].views, image.views(photo.pixels, render.views, 224)), path
