"""structlog set-up. Called by __main__ alone; everybody else asks structlog for a logger."""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import orjson
import structlog

if TYPE_CHECKING:
    from pawsort.config import Log

# Level -> priority as in syslog(3), which systemd takes from the head of a line (sd-daemon(3)).
PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2, "exception": 3}
SAME_AGAIN = 60.0  # seconds for which a library's message that comes again is not repeated

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

Fields = MutableMapping[str, Any]


def set_up(log: Log) -> None:
    """Log to stderr, and to a file as well if `log` names one. Raises OSError when that cannot be opened.

    On stderr: readable lines when it is a terminal or the settings say so, otherwise one JSON object a line; each with
    its priority where stderr is systemd's journal. In the file always JSON.
    """
    console = log.format == "console" or (log.format == "auto" and sys.stderr.isatty())
    processors: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.dict_tracebacks,
    ]
    if log.file is not None:
        processors.append(_FileCopy(log.file, log.rotate_bytes, log.rotate_keep))
    if console:
        processors += [
            _shorten,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=9, sort_keys=False),
        ]
    else:
        processors.append(_to_json)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[log.level]),
        logger_factory=lambda *_: _StderrLogger(priorities=_is_journal(sys.stderr)),
        cache_logger_on_first_use=True,
    )
    _bridge_libraries()


def readable(path: Path | str | bytes) -> str:
    """A path as text that is safe to log and print: bytes that are no UTF-8 and control characters are escaped.

    A name with a newline in it can therefore not forge a line.
    """
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def _is_journal(stream: TextIO) -> bool:
    """Whether what is written there goes to systemd's journal, which says so by device and inode (systemd.exec(5))."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class _StderrLogger:
    """Looks sys.stderr up at each line, so that a progress bar may put itself in between."""

    def __init__(self, *, priorities: bool) -> None:
        self._priorities = priorities

    def __getattr__(self, level: str) -> Callable[[str], None]:
        """What writes a line of this level: info, error ..."""
        if level not in PRIORITIES:
            raise AttributeError(level)
        head = f"<{PRIORITIES[level]}>" if self._priorities else ""

        def write(message: str) -> None:
            # One write for the whole line, so that lines of several threads do not mix.
            lines = "".join(f"{head}{line}\n" for line in message.split("\n"))
            sys.stderr.write(lines)
            sys.stderr.flush()

        return write


class _FileCopy:
    """A processor that writes each line to a rotated file on its way past."""

    def __init__(self, file: Path, rotate_bytes: int, rotate_keep: int) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._handler = logging.handlers.RotatingFileHandler(
            file, maxBytes=rotate_bytes, backupCount=rotate_keep, encoding="utf-8"
        )

    def __call__(self, logger: object, method: str, fields: Fields) -> Fields:
        line = _to_json(logger, method, dict(fields))
        self._handler.emit(logging.LogRecord("pawsort", logging.INFO, "", 0, line, None, None))
        return fields


def _to_json(_logger: object, _method: str, fields: Fields) -> str:
    return as_json({"event": fields.pop("event"), **fields})


def as_json(document: Mapping[str, Any]) -> str:
    """The document as JSON, whatever is in it: file names need not be text, and a message may quote one."""
    try:
        return orjson.dumps(document, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:
        return json.dumps(document, default=repr, ensure_ascii=False).encode("utf-8", "replace").decode()


def _shorten(_logger: object, _method: str, fields: Fields) -> Fields:
    """For a person: the clock time, the file, where it went and how sure; the rest is in the ledger."""
    fields["timestamp"] = fields["timestamp"][11:19]
    if fields["event"] not in {"sorted", "review", "rejected"} or "destination" not in fields:
        return fields
    short = {key: fields[key] for key in ("timestamp", "level", "event", "file")}
    short["to"] = os.path.relpath(fields["destination"])
    if fields.get("confidence") is not None:
        short["sure"] = round(fields["confidence"], 3)
    if fields.get("reason") is not None:
        short["reason"] = fields["reason"]
    return short


def _bridge_libraries() -> None:
    """What libraries say through the standard library's logging and warnings becomes lines of our own log."""
    root = logging.getLogger()
    root.handlers = [_Bridge(logging.WARNING)]
    # watchdog reports lost events and folders that went away: daemon.inbox hears that itself, and says what it did.
    watchdog = logging.getLogger("watchdog")
    watchdog.propagate = False
    watchdog.handlers = [logging.NullHandler()]
    logging.captureWarnings(capture=True)
    # A folder renamed inside the inbox is watched already, by its inode; it is meant to be watched under its new name.
    warnings.filterwarnings("ignore", message="Callback with id", category=RuntimeWarning)


class _Bridge(logging.Handler):
    """Passes a library's message on, and not again for a while: a fault that lasts must not flood the log."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self._told: dict[tuple[str, str], float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        message, now = record.getMessage(), time.monotonic()
        self._told = {said: when for said, when in self._told.items() if now - when < SAME_AGAIN}
        if (record.name, message) in self._told:
            return
        self._told[record.name, message] = now
        level = "error" if record.levelno >= logging.ERROR else "warning"
        getattr(structlog.get_logger(), level)("library", logger=record.name, message=message)
