"""One decoder process: `python -m pawsort.decode_worker`, started by decoder_process.DecoderProcess only.

It may crash or hang on hostile bytes and costs nobody anything when it does. It holds two descriptors
from its parent, named in the one argument, a JSON object: a SOCK_SEQPACKET socket, over which each photo
comes as an open file (SCM_RIGHTS) with a JSON request and goes as a JSON reply, and a memfd, in whose
slots the pictures are left. It reads each photo once, and hashes the bytes that it decodes.

It ends when its parent does: the socket then closes, and the kernel kills it should it be busy.
"""

import contextlib
import ctypes
import hashlib
import mmap
import os
import re
import resource
import signal
import socket
import sys
import time
import traceback
from typing import Any, Final

import cv2
import numpy as np
import orjson

from pawsort import __version__, image
from pawsort.errors import PictureError
from pawsort.exchange import BEGUN, DECODING, READING, REQUEST_BYTES, STAGE_AT, Layout

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38
_OOM_SCORE_ADJ: Final = 800  # of 1000: when memory runs out, a decoder goes before its parent
_NOISE_BYTES: Final = 1 << 20  # the most that codecs may write to standard error for one photo
_RAN_OUT: Final = re.compile(rb"premature end of[a-zA-Z ]*|not enough data|premature EOF", re.IGNORECASE)
_STRAY_BYTES: Final = re.compile(rb"Corrupt JPEG data: (\d{1,9}) extraneous bytes")
_MOST_STRAY_SHARE: Final = 0.1  # of the file; photos in the wild have up to a few thousand bytes
_MOST_SAID: Final = 2000  # characters of a message, escaped as JSON well below REPLY_BYTES
_PHOTOS_BETWEEN_CHECKS: Final = 32
_LEAK_BYTES: Final = 64 << 20
_LARGEST_READ: Final = 1 << 30  # Linux reads at most 2 GiB in one call


def main(argument: str) -> int:
    """Serve photos until the parent hangs up, or until too much memory has leaked: the parent then starts anew."""
    settings = orjson.loads(argument)
    if settings["version"] != __version__:
        # Were it to go on, what the two misunderstand would be blamed on photos.
        sys.stderr.write(
            f"pawsort {__version__} was installed while {settings['version']} runs; restart it\n"
        )
        return 1
    _protect(settings["parent"])
    limits = image.Limits(**settings["limits"])
    render = image.Render(**{**settings["render"], "views": tuple(settings["render"]["views"])})
    layout = Layout.of(render, settings["slots"])
    cv2.setNumThreads(1)
    parent = socket.socket(fileno=settings["socket"])
    with mmap.mmap(settings["memory"], layout.total_bytes) as memory:
        most_resident = _limit_memory(limits.memory_bytes)
        parent.send(b'{"ready":true}')
        begun = 0
        while True:
            message, descriptors, _, _ = socket.recv_fds(parent, REQUEST_BYTES, 1)
            if not message:
                return 0
            request = orjson.loads(message)
            begun += 1
            memory[STAGE_AT] = READING
            BEGUN.pack_into(memory, 0, begun)
            try:
                reply = _answer(descriptors[0], limits, render, layout, memory, request["slot"])
            finally:
                os.close(descriptors[0])
            _forget_noise()
            parent.send(orjson.dumps({"ticket": request["ticket"], **reply}))
            if begun % _PHOTOS_BETWEEN_CHECKS == 0 and _memory_in_use()[1] > most_resident:
                return 0


def _protect(parent: int) -> None:
    """End with the parent, leave signals to it, go first when memory runs out, dump no core."""
    for signum in (
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGHUP,
        signal.SIGQUIT,
        signal.SIGUSR1,
        signal.SIGUSR2,
    ):
        signal.signal(signum, signal.SIG_IGN)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if os.getppid() != parent:  # it died before the kernel was told
        sys.exit(0)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:
        score.write(str(_OOM_SCORE_ADJ))  # some containers forbid it; everything else works without
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_NOISE_BYTES, _NOISE_BYTES))


def _limit_memory(photo_bytes: int) -> int:
    """Bound the address space: what the idle worker has, and `photo_bytes` on top.

    Returns the resident memory, in bytes, above which the worker has leaked too much to go on: codecs
    leak where they stumble over broken files, and a fresh worker costs a quarter of a second.
    """
    size, resident = _memory_in_use()
    resource.setrlimit(resource.RLIMIT_AS, (size + photo_bytes, size + photo_bytes))
    return resident + max(photo_bytes // 8, _LEAK_BYTES)


def _memory_in_use() -> tuple[int, int]:
    """Address space and resident memory of this process, bytes."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        size, resident = statm.read().split()[:2]
    return int(size) * mmap.PAGESIZE, int(resident) * mmap.PAGESIZE


def _forget_noise() -> None:
    """Drop what codecs wrote to standard error, a memfd that the parent reads if this process dies."""
    if os.fstat(2).st_size:
        os.ftruncate(2, 0)


def _refuse_what_is_missing(size: int) -> None:
    """Raise PictureError "truncated" if a codec only complained that it ran out of data.

    libjpeg and libtiff fill what is missing with grey and say so on standard error. A file whose middle
    has not arrived looks like that, its end being there. A few stray bytes are common in whole photos
    and harmless; many are what is left when a hole of zeros was decoded as the rest of the picture.
    """
    if not os.fstat(2).st_size:
        return
    noise = os.pread(2, _NOISE_BYTES, 0)
    stray = max((int(count) for count in _STRAY_BYTES.findall(noise)), default=0)
    if (missing := _RAN_OUT.search(noise)) or stray > _MOST_STRAY_SHARE * size:
        said = missing[0].decode("latin-1") if missing else f"{stray} stray bytes"
        raise PictureError("truncated", f"part of the picture is missing: the decoder reports {said!r}")


def _answer(
    descriptor: int, limits: image.Limits, render: image.Render, layout: Layout, memory: mmap.mmap, slot: int
) -> dict[str, Any]:
    """Turn one open file into pictures in the slot and a reply; every failure is a reply too."""
    began = time.perf_counter()
    reply: dict[str, Any] = {"sha256": None, "bytes": 0}
    try:
        try:
            data = _read(descriptor, limits.bytes, reply)
            memory[STAGE_AT] = DECODING
        except OSError as error:
            return {**reply, "unreadable": f"reading failed: {error.strerror}", "errno": error.errno}
        reply["sha256"] = hashlib.sha256(data).hexdigest()
        hashed = time.perf_counter()
        photo = image.decode(data, limits, render.short_side)
        start = layout.slot(slot)
        _refuse_what_is_missing(len(data))
        views = np.frombuffer(memory, np.uint8, layout.views_bytes, start).reshape(layout.views)
        image.views(photo.pixels, render.views, render.size, views)
        reply["whole"] = None
        if render.keep_short_side is not None:
            kept = image.whole(photo.pixels, render.keep_short_side)
            np.frombuffer(memory, np.uint8, kept.size, start + layout.views_bytes)[:] = kept.reshape(-1)
            reply["whole"] = kept.shape[:2]
    except PictureError as error:
        return {**reply, "reason": error.reason, "message": _said(str(error)[:_MOST_SAID])}
    except MemoryError:
        message = (
            f"decoding it takes more than the {limits.memory_bytes:,} bytes of memory that one photo may take"
        )
        return {**reply, "reason": "too_large", "message": message}
    except Exception:  # noqa: BLE001  the boundary of one photo: a bug of ours is told to the parent, in full
        return {**reply, "bug": _said(traceback.format_exc()[-_MOST_SAID:])}
    ended = time.perf_counter()
    header = photo.header
    reply["header"] = (header.format, header.width, header.height, header.frames, header.orientation)
    reply["read_ms"] = round((hashed - began) * 1000, 3)
    reply["decode_ms"] = round((ended - hashed) * 1000, 3)
    return reply


def _said(text: str) -> str:
    """Text that JSON can carry: no half of a surrogate pair, as undecodable names become in Python."""
    return text.encode("utf-8", "replace").decode()


def _read(descriptor: int, most_bytes: int, reply: dict[str, Any]) -> bytes:
    """Read the whole file in one go; PictureError "changed" if it did not hold still meanwhile."""
    before = os.fstat(descriptor)
    reply["bytes"] = before.st_size
    if before.st_size > most_bytes:
        raise PictureError("too_large", f"{before.st_size:,} bytes, over the limit of {most_bytes:,}")
    data = os.pread(descriptor, min(before.st_size + 1, _LARGEST_READ), 0)
    while len(data) < before.st_size:
        more = os.pread(descriptor, min(before.st_size - len(data), _LARGEST_READ), len(data))
        if not more:
            break
        data += more
    after = os.fstat(descriptor)
    if (len(data), after.st_size, after.st_mtime_ns) != (before.st_size, before.st_size, before.st_mtime_ns):
        sizes = f"{before.st_size:,} bytes, then {after.st_size:,}"
        raise PictureError("changed", f"the file changed while it was read: {sizes}")
    return data


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
