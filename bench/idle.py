"""An idle daemon: how long it takes to be ready, what it weighs, and how soon a dropped photo is in its place.

    python bench/idle.py [--photos 200] [--starts 5] [--beside 'pawsort-train fit ...']

A photo's time runs from just before it is renamed into the inbox, whole, until its line stands in the log, which is
after the move and its syncs. `--beside` starts a command first and measures while it works.
"""

import argparse
import contextlib
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import photos
import psutil
from photos import ROOT

Line = dict[str, object]


def start(home: Path, model: Path) -> "subprocess.Popen[str]":
    """The daemon on folders in `home`."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "config.yaml").write_text(f"inbox: inbox\nsorted: sorted\nmodels: {model.parent}\n")
    command = [sys.executable, "-m", "daemon", "run", "--config", str(home / "config.yaml")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=home, stderr=subprocess.PIPE, text=True, env=environment)


def lines(daemon: "subprocess.Popen[str]") -> Iterator[Line]:
    """Its log, as it comes."""
    assert daemon.stderr is not None
    return map(json.loads, daemon.stderr)


def until(log: Iterator[Line], *events: str) -> Line:
    """The next line about one of these events."""
    return next(line for line in log if line["event"] in events)


def memory(process: psutil.Process) -> dict[str, float]:
    """MB of a process and its children: "all", "daemon", "decoders". Pages they share are counted once, in parts."""
    own = process.memory_full_info().pss / 1e6
    children = sum(child.memory_full_info().pss for child in process.children(recursive=True)) / 1e6
    return {"all": own + children, "daemon": own, "decoders": children}


def time_to_ready(home: Path, model: Path) -> float:
    """Seconds from starting the process until it says that it is ready."""
    began = time.perf_counter()
    daemon = start(home, model)
    until(lines(daemon), "ready")
    took = time.perf_counter() - began
    daemon.terminate()
    daemon.communicate()
    return took


def latencies(home: Path, model: Path, count: int) -> tuple[list[float], dict[str, float]]:
    """Milliseconds of each of `count` photos that are dropped one by one, and the daemon's memory after that."""
    chosen = photos.as_they_are(count, home / "drawn")
    outside = home / "outside"
    outside.mkdir(parents=True)
    daemon = start(home, model)
    pause, took = random.Random(0), []
    try:
        log = lines(daemon)
        until(log, "ready")
        for number, photo in enumerate(chosen):
            arriving = outside / f"{number:06d}.jpg"
            shutil.copyfile(photo, arriving)
            time.sleep(pause.uniform(0.05, 0.15))  # not waiting for anything: the daemon is to be idle
            began = time.perf_counter()
            arriving.rename(home / "inbox" / arriving.name)
            until(log, "sorted", "review", "rejected")
            took.append((time.perf_counter() - began) * 1e3)
        weight = memory(psutil.Process(daemon.pid))
    finally:
        daemon.terminate()
        daemon.communicate()
    return took, weight


@contextlib.contextmanager
def at_work(command: str | None) -> Iterator[None]:
    """Run a command beside the body."""
    if command is None:
        yield
        return
    process = subprocess.Popen(shlex.split(command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
        if process.poll() is not None:
            raise SystemExit(
                f"was over before the measuring was, with exit code {process.returncode}: {command}"
            )
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=int, default=200)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "current")
    parser.add_argument("--beside", help="a command that works meanwhile")
    parser.add_argument("--wait", type=float, default=0.0, help="seconds that it has to get going")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pawsort-bench-") as name, at_work(arguments.beside):
        time.sleep(arguments.wait)
        home = Path(name)
        # The first start compiles the model; every later one finds it compiled.
        first, *starts = (time_to_ready(home / "ready", arguments.model) for _ in range(arguments.starts + 1))
        took, weight = latencies(home / "latency", arguments.model, arguments.photos)
    print("| | |\n|---|---|")
    print(f"| start to ready, the first time | {first:.2f} s |")
    print(f"| start to ready, median of {len(starts)} more | {np.median(starts):.2f} s |")
    p50, p90, p99 = np.percentile(took, (50, 90, 99))
    print(f"| one photo, {len(took)} of them: p50, p90, p99 | {p50:.1f}, {p90:.1f}, {p99:.1f} ms |")
    told = (
        f"{weight['all']:.0f} MB ({weight['daemon']:.0f} the daemon, {weight['decoders']:.0f} the decoders)"
    )
    print(f"| memory of all processes | {told} |")


if __name__ == "__main__":
    main()
