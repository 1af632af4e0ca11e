"""One decoder process as its parent sees it: start it, hand it files, take its replies and pictures, end it."""

import contextlib
import fcntl
import mmap
import os
import signal
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson

import pawsort
from pawsort.exchange import BEGUN, READING, REPLY_BYTES, STAGE_AT, Layout
from pawsort.render import Limits, Render

WORKER_MODULE: Final = "pawsort.decode_worker"

_REAP_SECONDS: Final = 1.0
_NOISE_SHOWN: Final = 2000  # characters of a dead process's last words

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How a process ended."""

    cause: str  # the signal's name, or the exit code
    noise: str  # the end of what it wrote to standard error
    undead: subprocess.Popen[bytes] | None  # not reaped yet: it is stuck in the kernel


class DecoderProcess:
    """A running `python -m pawsort.decode_worker`; see there for its side.

    Requests and replies go over a SOCK_SEQPACKET socket as JSON, files by SCM_RIGHTS, pictures through
    a memfd that both map, and standard error into another memfd.
    """

    def __init__(self, render: Render, limits: Limits, slots: int) -> None:
        """Start the process, without waiting for it.

        OSError when the machine has no process, memory or descriptor for it.
        """
        self._layout = Layout.of(render, slots)
        with contextlib.ExitStack() as undo:
            self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(self._socket.close)
            with theirs:
                self._socket.setblocking(False)
                self._noise = os.memfd_create("pawsort-decoder-stderr")
                undo.callback(os.close, self._noise)
                fcntl.fcntl(self._noise, fcntl.F_SETFL, os.O_APPEND)
                shared = os.memfd_create("pawsort-decoder-pictures", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
                try:
                    self._memory = self._map(shared)
                    undo.callback(self._memory.close)
                    settings = {
                        "version": pawsort.__version__,
                        "parent": os.getpid(),
                        "socket": theirs.fileno(),
                        "memory": shared,
                        "slots": slots,
                        "limits": asdict(limits),
                        "render": asdict(render),
                    }
                    self._process = _spawn(settings, limits, (theirs.fileno(), shared), self._noise)
                finally:
                    os.close(shared)
            undo.pop_all()

    def _map(self, shared: int) -> mmap.mmap:
        os.ftruncate(shared, self._layout.total_bytes)
        # Sealed, or a process taken over by a hostile photo could shrink it under our reads.
        fcntl.fcntl(shared, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return mmap.mmap(shared, self._layout.total_bytes)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def fileno(self) -> int:
        """What to wait on: readable when a reply has come, or the process has died."""
        return self._socket.fileno()

    @property
    def begun(self) -> int:
        """How many photos it has begun."""
        return int(BEGUN.unpack_from(self._memory)[0])

    @property
    def is_reading(self) -> bool:
        """Whether the photo in hand is still being read from its file system."""
        return self._memory[STAGE_AT] == READING

    def send(self, ticket: int, slot: int, descriptor: int) -> None:
        """Hand it an open file, whose pictures go to `slot`.

        OSError when there is no room for the message; a process that has just died is no error here,
        for `receive` tells it.
        """
        request = orjson.dumps({"ticket": ticket, "slot": slot})
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            socket.send_fds(self._socket, [request], [descriptor])

    def receive(self) -> bytes | None:
        """The next reply; None when there is none at present, b"" when the process has died."""
        while True:
            try:
                return self._socket.recv(REPLY_BYTES)
            except BlockingIOError:
                return None
            except ConnectionResetError:
                continue  # it died with requests unread; what it said before, and then the end, follow

    def views(self, slot: int) -> Pixels:
        """A copy of the views in a slot: (V, S, S, 3)."""
        flat = np.frombuffer(self._memory, np.uint8, self._layout.views_bytes, self._layout.slot(slot))
        return flat.reshape(self._layout.views).copy()

    def whole(self, slot: int, height: int, width: int) -> Pixels:
        """A copy of the whole picture in a slot: (height, width, 3). ValueError if it would not fit."""
        if height < 1 or width < 1 or height * width * 3 > self._layout.whole_bytes:
            raise ValueError(f"a picture of {height} x {width} pixels does not fit its slot")
        at = self._layout.slot(slot) + self._layout.views_bytes
        flat = np.frombuffer(self._memory, np.uint8, height * width * 3, at)
        return flat.reshape(height, width, 3).copy()

    def end(self) -> Ending:
        """Kill it, reap it, and free what it held."""
        self._socket.close()
        self._memory.close()
        self._process.kill()
        undead = None
        try:
            code = self._process.wait(_REAP_SECONDS)
        except subprocess.TimeoutExpired:
            # Stuck in the kernel, on a dead network file system for one: reaped when it lets go.
            undead, code = self._process, -signal.SIGKILL
        size = os.fstat(self._noise).st_size
        noise = os.pread(self._noise, _NOISE_SHOWN, max(size - _NOISE_SHOWN, 0)).decode("utf-8", "replace")
        os.close(self._noise)
        return Ending(cause=_cause(code), noise=noise.strip(), undead=undead)


def _cause(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):  # a realtime signal has no name
            return signal.Signals(-code).name
    return f"exit code {code}"


def _spawn(
    settings: dict[str, Any], limits: Limits, descriptors: tuple[int, ...], noise: int
) -> subprocess.Popen[bytes]:
    # -P: what lies in the current folder must never be imported in place of a library.
    command = [
        sys.executable,
        "-P",
        "-X",
        "faulthandler",
        "-m",
        WORKER_MODULE,
        orjson.dumps(settings).decode(),
    ]
    environment = {
        **os.environ,
        # OpenCV reads these once, when it is imported.
        "OPENCV_IO_MAX_IMAGE_PIXELS": str(limits.pixels),
        "OPENCV_IO_MAX_IMAGE_WIDTH": str(limits.side),
        "OPENCV_IO_MAX_IMAGE_HEIGHT": str(limits.side),
        "OPENCV_LOG_LEVEL": "WARNING",  # the worker listens to what codecs complain about
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        # Each arena reserves 64 MiB of the address space that RLIMIT_AS leaves for photos.
        "MALLOC_ARENA_MAX": "1",
    }
    parent_folder = Path(__file__).resolve().parent.parent
    if parent_folder.name not in {"site-packages", "dist-packages"}:
        # Run from its source folder: the worker must find the same pawsort, wherever it is started.
        others = os.environ.get("PYTHONPATH")
        environment["PYTHONPATH"] = os.pathsep.join([str(parent_folder), *([others] if others else [])])
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=noise,
        pass_fds=descriptors,
        env=environment,
        # Ctrl-C is for the parent, which decides. A session of its own would do it too, but Linux groups
        # processes by session to share the processor out, and the parent's nice value would not reach in.
        process_group=0,
    )
