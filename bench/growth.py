"""A backlog of 100,000 photos: whether the last is as fast as the first, and memory stays flat.

    python bench/growth.py [--photos 100000] [--shipped]

What could grow is the ledger, the folders and the daemon's own memory, so the photos are small and the model is one
for pictures of 64 pixels, made for the occasion; `--shipped` takes the shipped model, which takes its time.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from idle import memory
from photos import ROOT, drawn

DIFFERENT = 500  # drawn pictures, each used again and again, under names of its own


def fill(inbox: Path, count: int) -> None:
    """Put `count` small photos into the inbox."""
    inbox.mkdir(parents=True)
    different = [
        drawn.encode(drawn.draw(drawn.LABELS[number % 3], number, 128), ".jpg") for number in range(DIFFERENT)
    ]
    for number in range(count):
        (inbox / f"{number:07d}.jpg").write_bytes(different[number % DIFFERENT])


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=int, default=100_000)
    parser.add_argument("--shipped", action="store_true", help="with the shipped model")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pawsort-bench-") as name:
        home = Path(name)
        print("making the photos ...", file=sys.stderr)
        fill(home / "inbox", arguments.photos)
        models = ROOT / "models"
        if not arguments.shipped:
            import tinymodel  # not above: it wants PyTorch

            models = home / "models"
            made = tinymodel.make(models / "tiny")
            (models / "current").symlink_to(made.path.name)
        (home / "config.yaml").write_text(f"inbox: inbox\nsorted: sorted\nmodels: {models}\n")
        command = [sys.executable, "-m", "daemon", "run", "--config", str(home / "config.yaml")]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        tenth = arguments.photos // 10
        marks, weights, filed = [], [], 0
        daemon = subprocess.Popen(command, cwd=home, stderr=subprocess.PIPE, text=True, env=environment)
        assert daemon.stderr is not None
        for line in daemon.stderr:
            if json.loads(line)["event"] not in {"sorted", "review", "rejected"}:
                continue
            filed += 1
            # The first hundredth is the start; from there on in ten equal parts.
            if (filed - tenth // 10) % tenth == 0:
                marks.append(time.perf_counter())
                weights.append(memory(psutil.Process(daemon.pid))["all"])
                print(f"{filed} filed, {weights[-1]:.0f} MB", file=sys.stderr)
            if filed == arguments.photos:
                break
        daemon.terminate()
        daemon.communicate()
    rates = [tenth / (after - before) for before, after in itertools.pairwise(marks)]
    print(f"| {arguments.photos:,} photos | first tenth | last tenth | median of all |\n|---|---|---|---|")
    print(f"| photos/s | {rates[0]:.0f} | {rates[-1]:.0f} | {statistics.median(rates):.0f} |")
    print(f"| MB, all processes | {weights[0]:.0f} | {weights[-1]:.0f} | {statistics.median(weights):.0f} |")


if __name__ == "__main__":
    main()
