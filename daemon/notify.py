"""What systemd is told (sd_notify(3)): ready, reloading, stopping, a status line, and signs of life.

Signs of life come from the loop's own turns and nowhere else: a loop that is stuck in the engine, in a move or in the
ledger sends none, and the service manager restarts the service.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

SOCKET = "NOTIFY_SOCKET"
WATCHDOG_USEC = "WATCHDOG_USEC"
WATCHDOG_PID = "WATCHDOG_PID"


class Notifier:
    """Speaks to the service manager named in the environment; without one, every call does nothing."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get(SOCKET, "")
        # "@" stands for the null byte of an abstract address.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        meant = environment.get(WATCHDOG_PID, str(os.getpid())) == str(os.getpid())
        self._interval = int(environment.get(WATCHDOG_USEC, "0")) / 1e6 / 2 if meant else 0.0
        self._next = 0.0

    def ready(self, status: str) -> None:
        """The model has answered and the watch is armed."""
        self._send(f"READY=1\nSTATUS={status}\nMAINPID={os.getpid()}")

    def reloading(self) -> None:
        """A reload was asked for; `ready` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The service is going to end."""
        self._send("STOPPING=1\nSTATUS=finishing the photos in flight")

    def status(self, text: str) -> None:
        """One line for a person."""
        self._send(f"STATUS={text}")

    def sign_of_life(self) -> None:
        """The loop has turned. Sent on at half the interval at which the manager wants it."""
        now = time.monotonic()
        if self._interval and now >= self._next:
            self._next = now + self._interval / 2
            self._send("WATCHDOG=1")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.sendto(text.encode(), self._address)
