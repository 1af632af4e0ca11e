"""Photos decoded once, kept in a memory-mapped file, found again by content.

    pixels-1-SIDE.bin      RGB pixels of one photo after the other
    index-1-SIDE.jsonl     one line a photo: its content's sha256, where its pixels lie, its perceptual hashes;
                           or why its content cannot be decoded

A photo is known by the hash of its bytes, so a renamed or moved one is not decoded again, and a changed one is.
Pixels are written and synced before the line that names them: what a crash leaves half done is overwritten.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pawsort import errors, image
from trainer import likeness, reading
from trainer.listener import ignored
from trainer.reading import Skipped

Pixels = NDArray[np.uint8]

# The format of the two files; a change of it, or of what decoding yields, gets a new number and so new files.
_VERSION = 1
# These say something about the machine as well as about the photo: the next fit tries such a photo again.
_PASSING = frozenset({"changed", "decoder_died", "decoder_timed_out", "unreadable"})


@dataclass(frozen=True, kw_only=True)
class Filled:
    """What `PhotoCache.fill` found: each readable path's sha256, the rest, and how many had to be decoded."""

    sha256: Mapping[Path, str]
    skipped: tuple[Skipped, ...]
    decoded: int


@dataclass
class _Work:
    """The state of one `fill`: what is to be decoded and what came of it."""

    sha256: dict[Path, str] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    decoded: int = 0


class PhotoCache:
    """The cache in `folder`, of photos whose shorter side is at most `short_side` pixels. A context manager.

    Raises DataError when another process is using the folder.
    """

    def __init__(self, folder: Path, *, short_side: int) -> None:
        self.folder = folder
        self.short_side = short_side
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = (folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise errors.DataError(
                f"{folder}: another training run is using this cache; wait for it, or choose another --cache"
            ) from None
        self._pixels_file = (folder / f"pixels-{_VERSION}-{short_side}.bin").open("a+b")
        self._index_file = (folder / f"index-{_VERSION}-{short_side}.jsonl").open("a+b")
        self._index: dict[str, dict[str, Any]] = {}
        self._end = 0
        self._mapped: NDArray[np.uint8] = np.empty(0, dtype=np.uint8)
        self._read_index()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files and the lock."""
        self._index_file.close()
        self._pixels_file.close()
        self._lock.close()

    def pixels(self, sha256: str) -> Pixels:
        """The photo (h, w, 3) uint8 RGB, as a view into the memory-mapped file."""
        line = self._index[sha256]
        height, width, offset = line["height"], line["width"], line["offset"]
        if offset + height * width * 3 > len(self._mapped):
            self._mapped = np.memmap(self._pixels_file.name, dtype=np.uint8, mode="r")
        return self._mapped[offset : offset + height * width * 3].reshape(height, width, 3)

    def likeness(self, sha256: str) -> likeness.Likeness:
        """The perceptual hashes of the photo."""
        return likeness.Likeness(*self._index[sha256]["likeness"])

    def fill(
        self,
        paths: Iterable[Path],
        *,
        limits: image.Limits,
        workers: int,
        progress: Callable[[int, int], None] = ignored,
    ) -> Filled:
        """Have every photo of `paths` in the cache; decode those whose content is new, in worker processes.

        `progress(done, total)` counts photos. What cannot be read or decoded is skipped and told, never fatal.
        """
        work = _Work()
        wanted = self._hash(list(paths), work)
        fresh = [path for path, digest in wanted.items() if not self._recall(path, digest, work)]
        # Of several files with one content the first is decoded, the others find it in the cache afterwards.
        firsts = list({wanted[path]: path for path in reversed(fresh)}.values())[::-1]
        total = len(wanted)
        progress(total - len(fresh), total)
        if firsts:
            self._decode(
                firsts, work, limits, workers, lambda done: progress(total - len(fresh) + done, total)
            )
            self._index_file.flush()
            os.fsync(self._index_file.fileno())
        failed = {skipped.path for skipped in work.skipped}
        for path in set(fresh) - set(firsts):
            if wanted[path] in self._index:
                self._recall(path, wanted[path], work)
            elif path not in failed:
                message = "a copy of a file that cannot be decoded"
                work.skipped.append(Skipped(path=path, reason="copy", message=message))
        progress(total, total)
        return Filled(
            sha256=dict(sorted(work.sha256.items())),
            skipped=tuple(sorted(work.skipped, key=lambda skipped: skipped.path)),
            decoded=work.decoded,
        )

    def forget_all_but(self, kept: Collection[str]) -> int:
        """Remove the pixels of every photo whose sha256 is not in `kept`; how many there were.

        In place, so that it takes no room. The index is gone meanwhile: after a crash, all is decoded anew.
        """
        lines = sorted(
            (line for line in self._index.values() if "offset" in line), key=lambda line: line["offset"]
        )
        staying = [line for line in lines if line["sha256"] in kept]
        if len(staying) == len(lines):
            return 0
        self._index_file.truncate(0)
        os.fsync(self._index_file.fileno())
        self._mapped = np.empty(0, dtype=np.uint8)
        unreadable = [line for line in self._index.values() if "offset" not in line]
        self._index, self._end = {}, 0
        # Not the appending file, which writes at its end whatever place it is given.
        with open(self._pixels_file.name, "r+b") as file:
            for line in staying:
                file.seek(line["offset"])
                pixels = file.read(line["height"] * line["width"] * 3)
                file.seek(self._end)
                file.write(pixels)
                line["offset"] = self._end
                self._end += len(pixels)
            file.truncate(self._end)
            os.fsync(file.fileno())
        for line in [*unreadable, *staying]:
            self._note(line)
        self._index_file.flush()
        os.fsync(self._index_file.fileno())
        return len(lines) - len(staying)

    def _hash(self, paths: list[Path], work: _Work) -> dict[Path, str]:
        """The sha256 of each readable path; the others go to `work.skipped`."""
        wanted = {}
        with ThreadPoolExecutor(
            max_workers=4
        ) as threads:  # hashing and reading both let go of the interpreter
            for path, result in zip(paths, threads.map(_digest, paths), strict=True):
                if isinstance(result, str):
                    wanted[path] = result
                else:
                    message = str(result.strerror or result)
                    work.skipped.append(Skipped(path=path, reason="unreadable", message=message))
        return wanted

    def _recall(self, path: Path, digest: str, work: _Work) -> bool:
        line = self._index.get(digest)
        if line is None:
            return False
        if "reason" in line:
            work.skipped.append(Skipped(path=path, reason=line["reason"], message=line["message"]))
        else:
            work.sha256[path] = digest
        return True

    def _decode(
        self,
        paths: list[Path],
        work: _Work,
        limits: image.Limits,
        workers: int,
        progress: Callable[[int], None],
    ) -> None:
        render = image.Render(size=self.short_side, views=(), keep_short_side=self.short_side)
        results = reading.read(paths, render, limits, workers=workers)
        for done, (index, result) in enumerate(results, start=1):
            if isinstance(result, Skipped):
                work.skipped.append(result)
                if result.reason not in _PASSING and result.sha256 is not None:
                    self._note({"sha256": result.sha256, "reason": result.reason, "message": result.message})
            else:
                assert result.whole is not None
                self._store(result.sha256, result.whole)
                work.sha256[paths[index]] = result.sha256
                work.decoded += 1
            progress(done)

    def _store(self, digest: str, pixels: Pixels) -> None:
        if digest in self._index:
            return
        height, width, _ = pixels.shape
        self._pixels_file.write(np.ascontiguousarray(pixels).data)
        self._pixels_file.flush()
        line = {
            "sha256": digest,
            "offset": self._end,
            "height": height,
            "width": width,
            "likeness": list(likeness.of(pixels)),
        }
        self._end += pixels.size
        self._note(line)

    def _note(self, line: dict[str, Any]) -> None:
        self._index[line["sha256"]] = line
        self._index_file.write(json.dumps(line).encode() + b"\n")

    def _read_index(self) -> None:
        """Read the index, and cut off both files where a crash left them half written."""
        size = os.fstat(self._pixels_file.fileno()).st_size
        self._index_file.seek(0)
        whole = 0
        for text in self._index_file:
            try:
                line = json.loads(text)
            except ValueError:
                break
            if not text.endswith(b"\n"):
                break
            if "offset" in line:
                end = line["offset"] + line["height"] * line["width"] * 3
                if end > size:
                    break
                self._end = max(self._end, end)
            self._index[line["sha256"]] = line
            whole += len(text)
        self._index_file.truncate(whole)
        self._pixels_file.truncate(self._end)


def _digest(path: Path) -> str | OSError:
    try:
        with os.fdopen(reading.open_regular(path), "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        return error
