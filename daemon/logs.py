"""structlog set-up. Called by __main__ alone; everybody else asks structlog for a logger."""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any, Literal

import orjson
import structlog

Format = Literal["auto", "json", "console"]

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def set_up(*, level: str = "info", form: Format = "auto") -> None:
    """Log to stderr: one JSON object a line, or readable lines when `form` says so or stderr is a terminal."""
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    shared: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if console:
        last: list[Any] = [
            _shorten,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=9),
        ]
    else:
        last = [
            structlog.processors.dict_tracebacks,
            _event_first,
            structlog.processors.JSONRenderer(_to_json),
        ]
    structlog.configure(
        processors=shared + last,
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=_StderrFactory(),
        cache_logger_on_first_use=True,
    )
    # Libraries that use the standard library's logging (watchdog, OpenVINO's Python side) stay quiet unless it matters.
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    logging.getLogger("watchdog").setLevel(logging.WARNING)
    logging.getLogger("watchdog").propagate = False


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


class _StderrFactory:
    """Loggers that look sys.stderr up at each line, so that a progress bar may put itself in between."""

    def __call__(self, *_: object) -> structlog.typing.WrappedLogger:
        return _StderrLogger()


class _StderrLogger:
    def msg(self, message: str) -> None:
        # One write for the whole line, so that lines of several threads do not mix.
        sys.stderr.write(message + "\n")
        sys.stderr.flush()

    debug = info = warning = error = critical = exception = log = msg


def _to_json(fields: MutableMapping[str, Any], **_: object) -> str:
    return orjson.dumps(fields, default=repr, option=orjson.OPT_SERIALIZE_NUMPY).decode()


def _event_first(_logger: object, _method: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {"event": fields.pop("event"), **fields}


def _shorten(_logger: object, _method: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """For a person: the clock time, the file, where it went and how sure; the rest is in the ledger."""
    fields["timestamp"] = fields["timestamp"][11:19]
    if fields["event"] in {"sorted", "review", "rejected"} and "destination" in fields:
        keep = (
            "timestamp",
            "level",
            "event",
            "file",
            "label",
            "confidence",
            "reason",
            "destination",
            "latency_ms",
        )
        fields = {key: fields[key] for key in keep if fields.get(key) is not None}
        for key in ("confidence", "latency_ms"):
            if key in fields:
                fields[key] = round(fields[key], 3 if key == "confidence" else 1)
    return fields
