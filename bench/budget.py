"""Where the processor's time goes: milliseconds of CPU a photo, by stage, over a backlog.

    python bench/budget.py [--photos 600]

The daemon runs in this process, its stages timed from outside; a stage's time is the whole process's, so inference
counts all of its threads. The decoders are processes of their own, whose time is what the kernel says of them.
"""

import argparse
import functools
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the daemon does, see there

import photos
from photos import ROOT

sys.path.insert(0, str(ROOT))
from daemon import journal, logs
from daemon.decoding import Decoding
from daemon.filing import Filing
from daemon.inbox import Inbox
from daemon.intake import Intake
from daemon.service import Service
from pawsort import config
from pawsort.classifier import Classifier
from pawsort.ledger import Ledger

STAGES: dict[str, list[tuple[object, str]]] = {
    "finding and opening": [(Inbox, "next"), (Intake, "due"), (Intake, "examine")],
    "hand-over to and from the decoders": [(Decoding, "submit"), (Decoding, "collect")],
    "inference and decision": [(Classifier, "classify")],
    "moving and syncing": [(Filing, "file")],
    "ledger": [(Ledger, "begin"), (Ledger, "finish")],
    "log": [(journal, "write")],
}


class Clock:
    """CPU time by stage; time in a stage within another counts for the inner one alone."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self._within: list[str] = ["everything else"]
        self._since = time.process_time()

    def _turn(self) -> None:
        now = time.process_time()
        self.spent[self._within[-1]] += now - self._since
        self._since = now

    def attach(self, owner: object, name: str, stage: str) -> None:
        """Time every call of `owner.name`."""
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def timed(*args: object, **kwargs: object) -> object:
            self._turn()
            self._within.append(stage)
            self.calls[stage] += 1
            try:
                return inner(*args, **kwargs)
            finally:
                self._turn()
                self._within.pop()

        setattr(owner, name, timed)


def decoders_cpu() -> float:
    """Seconds of CPU of the decoders that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def sort(home: Path, model: Path, backlog: list[Path]) -> float:
    """Sort a backlog; the wall time it took, in seconds."""
    photos.copy(backlog, home / "inbox")
    os.sync()
    (home / "config.yaml").write_text(f"inbox: inbox\nsorted: sorted\nmodels: {model.parent}\n")
    settings = config.load(home / "config.yaml")
    began = time.perf_counter()
    Service(settings, once=True).run()
    return time.perf_counter() - began


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=int, default=600)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "current")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pawsort-bench-") as name:
        home = Path(name)
        backlog = photos.as_they_are(arguments.photos, home / "drawn")
        # The log is written to a file, as it costs a service to write to the journal.
        errors, log = os.dup(2), os.open(home / "log", os.O_CREAT | os.O_WRONLY)
        os.dup2(log, 2)
        logs.set_up(config.Log())
        sort(
            home / "first", arguments.model, backlog[:1]
        )  # everything is loaded once, and starting is not counted
        idle = decoders_cpu()
        clock = Clock()
        for stage, places in STAGES.items():
            for owner, attribute in places:
                clock.attach(owner, attribute, stage)
        wall = sort(home / "second", arguments.model, backlog)
        clock._turn()  # noqa: SLF001  the last stretch
        os.dup2(errors, 2)
        clock.spent["decoding and hashing, in the decoders"] = decoders_cpu() - 2 * idle
    count = len(backlog)
    print("| stage | ms of CPU a photo | share |\n|---|---|---|")
    total = sum(clock.spent.values())
    for stage, spent in clock.spent.most_common():
        print(f"| {stage} | {spent / count * 1e3:.2f} | {spent / total:.0%} |")
    cores = f"{total / wall:.2f} cores busy, {count / wall:.0f} photos/s"
    print(f"| **all** | **{total / count * 1e3:.2f}** | {cores} |")


if __name__ == "__main__":
    main()
