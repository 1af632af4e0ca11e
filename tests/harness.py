"""The real process on real files: a folder of its own, the daemon in it, and its log as it comes."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

PATIENCE = 30.0  # seconds; how long a test waits for what should take milliseconds


class Sandbox:
    """A place with a config.yaml, and the means to run pawsort on it."""

    def __init__(self, folder: Path, models: Path, **settings: Any) -> None:
        self.folder = folder
        self.inbox = folder / "inbox"
        self.sorted = folder / "sorted"
        self.review = folder / "review"
        self.rejected = folder / "rejected"
        self.config = folder / "config.yaml"
        values = {"inbox": "inbox", "sorted": "sorted", "models": str(models), "decoders": 2} | settings
        self.config.write_text(yaml.safe_dump(values), encoding="utf-8")
        self.inbox.mkdir()

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "daemon", *arguments, "--config", str(self.config)]

    def call(
        self, *arguments: str, timeout: float = 120.0, check: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            self.command(*arguments),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=check,
            cwd=self.folder,
        )

    def status(self) -> dict[str, Any]:
        return json.loads(self.call("status", "--json", check=True).stdout)

    @contextlib.contextmanager
    def running(self, *arguments: str, **options: Any) -> Iterator["Running"]:
        """The daemon in the background, ready; stopped at the end if it still runs."""
        daemon = Running(self.command("run", *arguments), self.folder, **options)
        try:
            daemon.wait_for("ready")
            yield daemon
        finally:
            daemon.end()

    def files(self) -> dict[str, bytes]:
        """Every photo in any folder, by path relative to the sandbox; notes and pawsort's own files left out."""
        found = {}
        for top in (self.inbox, self.sorted, self.review, self.rejected):
            for path in top.rglob("*"):
                if path.is_file() and not path.name.endswith(".reason.txt"):
                    found[os.fsencode(path.relative_to(self.folder)).decode(errors="backslashreplace")] = (
                        path.read_bytes()
                    )
        return found


class Running:
    """A daemon process and its log lines."""

    def __init__(self, command: list[str], folder: Path, **options: Any) -> None:
        self.lines: list[dict[str, Any]] = []
        self._news: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True, **options)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                self._news.put(json.loads(line))
            except ValueError:
                self._news.put({"event": "not JSON", "line": line.rstrip()})
        self._news.put(None)

    def wait_for(self, event: str, timeout: float = PATIENCE, **fields: Any) -> dict[str, Any]:
        """The first line, old or new, with this event and these fields."""
        for line in self.lines:
            if _matches(line, event, fields):
                return line
        until = time.monotonic() + timeout
        while True:
            try:
                line = self._news.get(timeout=max(until - time.monotonic(), 0.001))
            except queue.Empty:
                raise AssertionError(
                    f"no {event} {fields} within {timeout} s; log: {self.lines[-5:]}"
                ) from None
            if line is None:
                self._news.put(None)
                raise AssertionError(f"the daemon ended without {event} {fields}; log: {self.lines[-5:]}")
            self.lines.append(line)
            if _matches(line, event, fields):
                return line

    def wait_for_photo(self, name: str, timeout: float = PATIENCE) -> dict[str, Any]:
        """The line about the photo that arrived under this name."""
        until = time.monotonic() + timeout
        for line in self.lines:
            if line.get("file") == name and line["event"] in PHOTO_EVENTS:
                return line
        while time.monotonic() < until:
            line = self.next_line(max(until - time.monotonic(), 0.001))
            if line.get("file") == name and line["event"] in PHOTO_EVENTS:
                return line
        raise AssertionError(f"nothing about {name} within {timeout} s; log: {self.lines[-5:]}")

    def next_line(self, timeout: float = PATIENCE) -> dict[str, Any]:
        try:
            line = self._news.get(timeout=timeout)
        except queue.Empty:
            raise AssertionError(f"no line within {timeout} s; log: {self.lines[-5:]}") from None
        assert line is not None, f"the daemon ended; log: {self.lines[-5:]}"
        self.lines.append(line)
        return line

    def stop(self, number: int = signal.SIGTERM, timeout: float = PATIENCE) -> int:
        """Ask it to stop, and give its exit code."""
        self.process.send_signal(number)
        code = self.process.wait(timeout)
        self.drain()
        return code

    def drain(self) -> None:
        self._reader.join(PATIENCE)
        while not self._news.empty():
            line = self._news.get()
            if line is not None:
                self.lines.append(line)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.send_signal(signal.SIGABRT)  # its last line then tells where it was stuck
                self.process.wait()
        self.drain()

    @property
    def photos(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] in PHOTO_EVENTS]


PHOTO_EVENTS = {"sorted", "review", "rejected"}


def _matches(line: dict[str, Any], event: str, fields: dict[str, Any]) -> bool:
    return line.get("event") == event and all(line.get(key) == value for key, value in fields.items())


def wait_until(condition: Callable[[], Any], what: str, timeout: float = PATIENCE) -> Any:
    """Watch for something that no event tells of."""
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        if result := condition():
            return result
        threading.Event().wait(0.02)
    raise AssertionError(f"{what}: not within {timeout} s")
