"""structlog set-up. Called by __main__ alone; everybody else asks structlog for a logger."""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import sys
import warnings
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import structlog

if TYPE_CHECKING:
    from pawsort.config import Log

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

Fields = MutableMapping[str, Any]


def set_up(log: Log) -> None:
    """Log to stderr, and to a file as well if `log` names one. Raises OSError when that cannot be opened.

    On stderr: readable lines when it is a terminal or the settings say so, otherwise one JSON object a line. In the
    file always JSON.
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
        logger_factory=lambda *_: _StderrLogger(),
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


class _StderrLogger:
    """Looks sys.stderr up at each line, so that a progress bar may put itself in between."""

    def msg(self, message: str) -> None:
        # One write for the whole line, so that lines of several threads do not mix.
        sys.stderr.write(message + "\n")
        sys.stderr.flush()

    debug = info = warning = error = critical = exception = log = msg


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
    def emit(self, record: logging.LogRecord) -> None:
        level = "error" if record.levelno >= logging.ERROR else "warning"
        getattr(structlog.get_logger(), level)("library", logger=record.name, message=record.getMessage())
