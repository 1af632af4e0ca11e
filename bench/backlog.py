"""Photos a second over a backlog: the script that one would write, the ceiling, and pawsort with each engine, in turn.

    python bench/backlog.py [--photos 600] [--large 120] [--rounds 3] [--picture FILE]

Each run has a process and folders of its own. What is printed is a Markdown table of medians over the rounds: photos
a second from the start of the process to its end, and without the time that the process takes to do nothing, which
is measured on an empty inbox.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import photos
from photos import ROOT

Command = Callable[[Path, Path], list[str]]  # folder of a run, model -> what to start there
SCRIPT = "the script"
CEILING = "ceiling: decoding and int8 alone"


def script(home: Path, model: Path) -> list[str]:
    """The script; it sorts home/inbox into home/sorted."""
    return [
        sys.executable,
        str(ROOT / "bench" / "naive.py"),
        *map(str, (model, home / "inbox", home / "sorted")),
    ]


def ceiling(home: Path, model: Path) -> list[str]:
    """Nothing but decoding and inference."""
    return [sys.executable, str(ROOT / "bench" / "ceiling.py"), str(model), str(home / "inbox")]


def pawsort(engine: str) -> Command:
    """`pawsort run --once` with settings that differ from the defaults in the engine alone."""

    def command(home: Path, model: Path) -> list[str]:
        settings = f"inbox: inbox\nsorted: sorted\nmodels: {model.parent}\nengine: {engine}\n"
        (home / "config.yaml").write_text(settings)
        return [sys.executable, "-m", "daemon", "run", "--once", "--config", str(home / "config.yaml")]

    return command


CONTENDERS: dict[str, Command] = {
    SCRIPT: script,
    CEILING: ceiling,
    "pawsort, engine torch": pawsort("torch"),
    "pawsort, engine openvino": pawsort("openvino"),
}


@dataclass
class Times:
    """Seconds that a contender took."""

    idle: float = 0.0  # over an empty inbox: start and stop
    rounds: list[float] = field(default_factory=list)

    def rate(self, count: int) -> float:
        """Photos a second without start and stop, of the median round."""
        return count / (statistics.median(self.rounds) - self.idle)


def seconds(command: Command, model: Path, backlog: Sequence[Path], scratch: Path) -> float:
    """How long a process takes over a backlog, from start to exit."""
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        home = Path(name)
        photos.copy(backlog, home / "inbox")
        os.sync()  # so that nobody pays for writing what the copying left
        started = command(home, model)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with (home / "log").open("wb") as log:
            began = time.perf_counter()
            subprocess.run(started, check=True, cwd=ROOT, stdout=log, stderr=log, env=environment)
            took = time.perf_counter() - began
        left = sum(1 for _ in (home / "inbox").iterdir())
        if left and command is not ceiling:
            raise SystemExit(f"{left} of {len(backlog)} photos were left in the inbox: {' '.join(started)}")
        return took


def compare(backlog: Sequence[Path], model: Path, rounds: int, scratch: Path, what: str) -> dict[str, Times]:
    """All contenders over the same backlog, in turn."""
    # The empty run warms up too.
    times = {name: Times(idle=seconds(command, model, [], scratch)) for name, command in CONTENDERS.items()}
    for number in range(rounds):
        for name, command in CONTENDERS.items():
            print(f"{what}, round {number + 1} of {rounds}: {name} ...", file=sys.stderr)
            times[name].rounds.append(seconds(command, model, backlog, scratch))
    return times


def table(times: dict[str, Times], count: int) -> str:
    """The comparison in Markdown."""
    lines = [
        "| | photos/s, all told | slowest to fastest | start and stop, s | photos/s without | × script | of ceiling |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, taken in times.items():
        told = f"{count / statistics.median(taken.rounds):.0f}"
        spread = f"{count / max(taken.rounds):.0f} to {count / min(taken.rounds):.0f}"
        rate = taken.rate(count)
        ratios = f"{rate / times[SCRIPT].rate(count):.1f} | {rate / times[CEILING].rate(count):.2f}"
        lines.append(f"| {name} | {told} | {spread} | {taken.idle:.1f} | {rate:.0f} | {ratios} |")
    return "\n".join(lines)


def draw(sets: dict[str, tuple[dict[str, Times], int]], file: Path) -> None:
    """The rates as bars, one panel a set."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(sets), figsize=(10, 2.4), layout="constrained", squeeze=False)
    for panel, (title, (times, count)) in zip(panels[0], sets.items(), strict=True):
        names = [*times][::-1]
        rates = [times[name].rate(count) for name in names]
        colours = ["#3b7dd8" if name.startswith("pawsort") else "#b8bec6" for name in names]
        bars = panel.barh(names, rates, color=colours)
        panel.bar_label(bars, [f"{rate:.0f}" for rate in rates], padding=3)
        panel.set_title(f"{title}: photos a second", fontsize=10, loc="left")
        panel.spines[["top", "right"]].set_visible(False)
        panel.margins(x=0.12)
        if panel is not panels[0][0]:
            panel.set_yticklabels([])
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=int, default=600)
    parser.add_argument("--large", type=int, default=120, help="photos of 12 megapixels; 0: none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "current")
    parser.add_argument("--picture", type=Path, help="draw the rates into this .svg")
    arguments = parser.parse_args()
    sets: dict[str, tuple[dict[str, Times], int]] = {}
    with tempfile.TemporaryDirectory(prefix="pawsort-bench-") as name:
        scratch = Path(name)
        for title, backlog in (
            ("as they are", photos.as_they_are(arguments.photos, scratch / "drawn")),
            ("12 megapixels", photos.twelve_megapixels(arguments.large, scratch / "large")),
        ):
            if backlog:
                times = compare(backlog, arguments.model, arguments.rounds, scratch, title)
                sets[title] = times, len(backlog)
    for title, (times, count) in sets.items():
        print(f"{count} photos, {title}; {arguments.rounds} rounds, {os.cpu_count()} cores\n")
        print(table(times, count), "\n")
    if arguments.picture:
        draw(sets, arguments.picture)


if __name__ == "__main__":
    main()
