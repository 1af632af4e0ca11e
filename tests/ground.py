"""Ground to stage crashes on: photos to be sorted, and a process that sorts them and can be killed at any point."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import stocktaking
from harness import wait_until
from pawsort import ledger

SCRIPTS = Path(__file__).parent / "faults"


@dataclass
class Ground:
    """A place to be sorted by sorter.py: photos of every kind in the inbox, and files of others where they will go."""

    place: Path
    sorted: Path
    state: Path
    arrived: Counter[str]
    residents: dict[Path, str]

    @classmethod
    def lay_out(
        cls, place: Path, into: Path, state: Path, count: int = 5, *, crowded: bool = True
    ) -> "Ground":
        """`crowded`: files of others have names that photos will want."""
        names = ["a-one.jpg", "a-two.jpg", "b-one.jpg", "review-one.jpg", "rejected-one.jpg"]
        names += [f"{'abc'[number % 3]}-{number}.jpg" for number in range(count - len(names))]
        for folder in (place / "inbox", place / "review", place / "rejected", into / "a", state):
            folder.mkdir(parents=True)
        photos = [place / "inbox" / name for name in names]
        residents = [into / "a" / "a-one.jpg", place / "rejected" / "rejected-one.jpg"] if crowded else []
        for path in (*photos, *residents):
            # Two blocks and a bit, so that a copy has a middle at which it can be cut.
            path.write_bytes(os.fsencode(path) * (9000 // len(os.fsencode(path)) + 1))
        return cls(
            place,
            into,
            state,
            Counter(stocktaking.sha256(path) for path in photos),
            {path: stocktaking.sha256(path) for path in residents},
        )

    def wrong(self) -> dict[str, list[str]]:
        """What the stocktaking finds, with photos that are left in the inbox."""
        folders = (self.sorted, self.place / "review", self.place / "rejected")
        wrong = stocktaking.take(
            self.place / "inbox", folders, self.state / ledger.FILE, self.arrived, self.residents
        )
        if left := [path.name for path in (self.place / "inbox").iterdir()]:
            wrong["not sorted"] = left
        return wrong

    def clear(self) -> None:
        for folder in (self.place, self.sorted, self.state):
            shutil.rmtree(folder, ignore_errors=True)


class Sorter:
    """sorter.py at work: sorts grounds, and has strace take hold of it while it does."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, SCRIPTS / "sorter.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def begin(self, ground: Ground, *, broken: bool = False, stopped: bool = False) -> int:
        """Have a ground sorted. Gives the process that does it."""
        order = {"place": ground.place, "sorted": ground.sorted, "state": ground.state}
        line = json.dumps(
            {key: str(path) for key, path in order.items()} | {"broken": broken, "stopped": stopped}
        )
        assert self._server.stdin is not None
        self._server.stdin.write(f"{line}\n")
        self._server.stdin.flush()
        return int(self._answer())

    def end(self) -> int:
        """Wait for the end of what was begun. Gives its exit code."""
        return int(self._answer())

    def sort(self, ground: Ground, *, broken: bool = False) -> None:
        """Have a ground sorted undisturbed."""
        self.begin(ground, broken=broken)
        assert self.end() == 0

    def sort_traced(
        self, ground: Ground, *options: str, log: Path = Path("/dev/null"), broken: bool = False
    ) -> int:
        """Have a ground sorted under strace. Gives the exit code."""
        worker = self.begin(ground, broken=broken, stopped=True)
        wait_until(lambda: _state(worker) == "T", "the worker stopped")
        strace = subprocess.Popen(
            ["strace", "-o", str(log), *options, "-p", str(worker)], stderr=subprocess.PIPE, text=True
        )
        assert strace.stderr is not None
        first = strace.stderr.readline()
        assert "attached" in first, first
        os.kill(worker, signal.SIGCONT)
        code = self.end()
        strace.wait()
        strace.stderr.close()
        return code

    def close(self) -> None:
        """End it, and show what it had to complain about."""
        _, complaints = self._server.communicate()
        print(complaints)

    def _answer(self) -> str:
        assert self._server.stdout is not None
        answer = self._server.stdout.readline()
        assert answer, "the sorter ended"
        return answer


def calls_in(log: Path) -> Counter[str]:
    """How often each system call stands in a log of strace."""
    return Counter(re.findall(r"^(?:\d+ +)?(\w+)\(", log.read_text(errors="replace"), flags=re.MULTILINE))


def _state(process: int) -> str:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
