import json
import logging
import os
import pty
import subprocess
import sys
import threading
import warnings

import pytest
import structlog

from daemon import logs
from daemon.logs import readable
from pawsort.config import Log


@pytest.fixture
def log(tmp_path):
    """Sets logging up, and puts everything back."""
    root, watchdog = logging.getLogger(), logging.getLogger("watchdog")
    before = (root.handlers[:], root.level, watchdog.handlers[:], watchdog.propagate, structlog.get_config())

    def set_up(**settings):
        values = {"format": "json", **settings}
        logs.set_up(Log.model_validate(values, context={"base": tmp_path}))
        return structlog.get_logger()

    yield set_up
    logging.captureWarnings(capture=False)
    root.handlers, root.level, watchdog.handlers, watchdog.propagate = before[:4]
    structlog.configure(**before[4])


def lines(capsys):
    captured = capsys.readouterr()
    assert captured.out == ""
    return [json.loads(line) for line in captured.err.splitlines()]


def test_a_line_is_one_json_object_on_stderr_and_nothing_is_on_stdout(log, capsys):
    log().info("sorted", file="a.jpg", confidence=0.5)
    (line,) = lines(capsys)
    assert next(iter(line)) == "event"
    assert (line["event"], line["level"], line["file"], line["confidence"]) == (
        "sorted",
        "info",
        "a.jpg",
        0.5,
    )
    assert line["timestamp"].endswith("Z")


@pytest.mark.parametrize(
    "value",
    [os.fsdecode(b"caf\xe9.jpg"), "a\nb", "\x1b[31mred", "Bär", {1, 2}, ValueError("x"), b"bytes"],
    ids=["not utf-8", "newline", "escape", "umlaut", "set", "error", "bytes"],
)
def test_no_value_can_break_a_line_or_forge_another(log, capsys, value):
    log().info("sorted", file=value)
    assert len(lines(capsys)) == 1


def test_a_key_that_is_no_text_breaks_no_line(log, capsys):
    log().info("sorted", probabilities={1: 0.5})
    assert len(lines(capsys)) == 1


def test_the_level_is_obeyed(log, capsys):
    logger = log(level="warning")
    logger.info("unheard")
    logger.warning("heard")
    assert [line["event"] for line in lines(capsys)] == ["heard"]


def test_an_exception_is_logged_with_its_traceback_in_one_line(log, capsys):
    logger = log()
    try:
        raise RuntimeError("boom")
    except RuntimeError:
        logger.exception("failed")
    (line,) = lines(capsys)
    assert line["exception"][0]["exc_type"] == "RuntimeError"
    assert line["exception"][0]["exc_value"] == "boom"


def test_lines_of_many_threads_do_not_mix(log, capfd):
    logger = log()
    threads = [
        threading.Thread(target=lambda: [logger.info("sorted", file="x" * 500) for _ in range(50)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written = capfd.readouterr().err.splitlines()
    assert len(written) == 200
    assert all(json.loads(line)["event"] == "sorted" for line in written)


def test_a_log_file_gets_the_same_lines_and_is_rotated(log, capsys, tmp_path):
    file = tmp_path / "deep" / "pawsort.log"
    logger = log(file=str(file), rotate_bytes=2000, rotate_keep=2)
    for number in range(100):
        logger.info("sorted", number=number)
    shown = [line["number"] for line in lines(capsys)]
    assert shown == list(range(100))
    kept = [file.with_name("pawsort.log.2"), file.with_name("pawsort.log.1"), file]
    assert set(file.parent.iterdir()) == set(kept)
    numbers = [json.loads(line)["number"] for part in kept for line in part.read_text().splitlines()]
    assert numbers == list(range(numbers[0], 100))


def test_a_log_file_that_cannot_be_opened_is_told(log, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        log(file=str(tmp_path / "file" / "pawsort.log"))


def test_for_a_person_a_photo_is_one_short_line(log, capsys):
    log(format="console").info(
        "sorted",
        id=1,
        file="a.jpg",
        destination="/out/cats/a.jpg",
        label="cats",
        confidence=0.98765,
        sha256="ab" * 32,
        probabilities={"cats": 0.98},
        latency_ms=12.345,
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert "a.jpg" in line
    assert "0.988" in line
    assert "abab" not in line


def test_on_a_terminal_lines_are_for_a_person_and_in_a_pipe_json():
    script = (
        "import structlog; from daemon import logs; from pawsort.config import Log\n"
        "logs.set_up(Log()); structlog.get_logger().info('ready')"
    )
    piped = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert json.loads(piped.stderr)["event"] == "ready"
    reader, writer = pty.openpty()
    subprocess.run([sys.executable, "-c", script], stderr=writer, check=True)
    os.close(writer)
    shown = os.read(reader, 10_000).decode()
    os.close(reader)
    assert "ready" in shown
    assert not shown.startswith("{")


def test_what_libraries_say_becomes_lines_of_ours(log, capsys):
    log()
    logging.getLogger("somebody").warning("careful")
    logging.getLogger("somebody").info("unimportant")
    logging.getLogger("watchdog.observers").warning("heard by the inbox, which says what it did")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old ways", DeprecationWarning, stacklevel=1)
    said = lines(capsys)
    assert [(line["event"], line["logger"]) for line in said] == [
        ("library", "somebody"),
        ("library", "py.warnings"),
    ]
    assert "careful" in said[0]["message"]


def test_a_library_that_repeats_itself_does_not_flood_the_log(log, capsys):
    log()
    for _ in range(1000):
        logging.getLogger("somebody").warning("the disk is full")
    logging.getLogger("somebody").warning("and now this")
    assert [line["message"] for line in lines(capsys)] == ["the disk is full", "and now this"]


def test_the_journal_is_told_how_grave_each_line_is_and_a_pipe_is_not():
    script = (
        "import os, sys, structlog; from daemon import logs; from pawsort.config import Log\n"
        "if sys.argv[1] == 'journal':\n"
        "    status = os.fstat(2)\n"
        "    os.environ['JOURNAL_STREAM'] = f'{status.st_dev}:{status.st_ino}'\n"
        "logs.set_up(Log()); log = structlog.get_logger()\n"
        "log.info('ready'); log.warning('recovered'); log.error('degraded')"
    )
    said = {
        where: subprocess.run(
            [sys.executable, "-c", script, where], capture_output=True, check=True, text=True
        ).stderr
        for where in ("journal", "pipe")
    }
    assert [line[:3] for line in said["journal"].splitlines()] == ["<6>", "<4>", "<3>"]
    assert [json.loads(line[3:])["event"] for line in said["journal"].splitlines()] == [
        "ready",
        "recovered",
        "degraded",
    ]
    assert [line[:1] for line in said["pipe"].splitlines()] == ["{", "{", "{"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a b.jpg", "a b.jpg"),
        ("Bär 🐻.jpg", "Bär 🐻.jpg"),
        (b"caf\xe9.jpg", "caf\\xe9.jpg"),
        ("a\nsorted file=b", "a\\nsorted file=b"),
        ("\x1b[2Jgone\r", "\\x1b[2Jgone\\r"),
        ("right\u202eleft", "right\\u202eleft"),
        ("\u2028", "\\u2028"),
    ],
)
def test_names_are_shown_so_that_they_can_forge_nothing(name, shown):
    assert readable(name) == shown
    assert readable(os.fsdecode(name)) == shown
    assert shown.isprintable()
