"""Photos a second over a backlog: the script a user would write, and pawsort with each engine, in turn.

    python bench/backlog.py [--photos 600] [--rounds 3]

The photos are those in ../shared, where that is there, else drawn ones with a photo's detail. Each run has a process
and folders of its own. What is printed is a Markdown table of medians over the rounds: photos a second from the start
of the process to its end, and without the time that the process takes to do nothing, which is measured on an empty
inbox.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data" / "animals"
MODEL = ROOT / "models" / "current"

sys.path.insert(0, str(ROOT / "tests"))
import drawn  # noqa: E402  the tests' drawn pictures

Command = Callable[[Path], list[str]]  # folder of a run -> what to start there


def naive(home: Path) -> list[str]:
    """The script; it sorts home/inbox into home/sorted."""
    return [
        sys.executable,
        str(ROOT / "bench" / "naive.py"),
        str(MODEL),
        str(home / "inbox"),
        str(home / "sorted"),
    ]


def pawsort(engine: str) -> Command:
    """`pawsort run --once` with settings that differ from the defaults in the engine alone."""

    def command(home: Path) -> list[str]:
        settings = f"inbox: inbox\nsorted: sorted\nmodels: {MODEL.parent}\nengine: {engine}\n"
        (home / "config.yaml").write_text(settings)
        return [sys.executable, "-m", "daemon", "run", "--once", "--config", str(home / "config.yaml")]

    return command


CONTENDERS: dict[str, Command] = {
    "the script": naive,
    "pawsort, engine torch": pawsort("torch"),
    "pawsort, engine openvino": pawsort("openvino"),
}


def photos(count: int, folder: Path) -> list[Path]:
    """Where `count` photos lie."""
    if SHARED.is_dir():
        everything = sorted(SHARED.rglob("*.jpg"))
        step = max(1, len(everything) // count)
        return everything[::step][:count]
    sizes = [(640, 480), (1024, 768), (1200, 800), (500, 375), (900, 1200)]
    return [
        drawn.write(folder / f"{number:05d}.jpg", drawn.photo(number, *sizes[number % len(sizes)]))
        for number in range(count)
    ]


def seconds(contender: Command, backlog: Iterable[Path], scratch: Path) -> float:
    """How long a process takes over a backlog, from start to exit."""
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        home = Path(name)
        (home / "inbox").mkdir()
        expected = 0
        for path in backlog:
            shutil.copyfile(path, home / "inbox" / path.name)
            expected += 1
        os.sync()  # so that nobody pays for writing what the copying left
        command = contender(home)
        with (home / "log").open("wb") as log:
            began = time.perf_counter()
            subprocess.run(command, check=True, cwd=ROOT, stdout=log, stderr=log)
            took = time.perf_counter() - began
        left = sum(1 for _ in (home / "inbox").iterdir())
        if left:
            raise SystemExit(f"{left} of {expected} photos were left in the inbox: {' '.join(command)}")
        return took


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pawsort-bench-") as name:
        scratch = Path(name)
        backlog = photos(arguments.photos, scratch)
        idle = {
            contender: seconds(command, [], scratch) for contender, command in CONTENDERS.items()
        }  # warms up too
        took: dict[str, list[float]] = {contender: [] for contender in CONTENDERS}
        for number in range(arguments.rounds):
            for contender, command in CONTENDERS.items():
                print(f"round {number + 1} of {arguments.rounds}: {contender} ...", file=sys.stderr)
                took[contender].append(seconds(command, backlog, scratch))
    count = len(backlog)
    print(f"{count} photos, {arguments.rounds} rounds, {os.cpu_count()} cores\n")
    print(
        "| | photos/s, all told | slowest to fastest | start and stop, s | photos/s without those | ratio |"
    )
    print("|---|---|---|---|---|---|")
    rates = {name: count / (statistics.median(times) - idle[name]) for name, times in took.items()}
    for contender, times in took.items():
        told = (
            f"{count / statistics.median(times):.0f} | {count / max(times):.0f} to {count / min(times):.0f}"
        )
        without = f"{rates[contender]:.0f} | {rates[contender] / rates['the script']:.1f}"
        print(f"| {contender} | {told} | {idle[contender]:.1f} | {without} |")


if __name__ == "__main__":
    main()
