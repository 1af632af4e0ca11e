"""Sorts a place with the daemon's own recovery, intake, filing and ledger; what a photo is, its name says.

A server, because starting Python takes longer than sorting: each line on its standard input is an order,

    {"place": FOLDER, "sorted": FOLDER, "state": FOLDER, "broken": false, "stopped": true}

and for each it forks a process, prints its id, waits for its end and prints its exit code. A process of an order with
`stopped` stops itself before it begins, so that a tracer can take hold of it.
"""

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import broken

from daemon import recovery, returning
from daemon.filing import Filing, Folders, Verdict
from daemon.inbox import files_below
from daemon.intake import Arrival, Intake, Ready
from pawsort import ledger

BATCH = 3


def main() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            carry_out(order)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def carry_out(order: dict) -> None:
    try:
        if order["stopped"]:
            os.kill(os.getpid(), signal.SIGSTOP)
        sort(Path(order["place"]), Path(order["sorted"]), Path(order["state"]), broken=order["broken"])
    except BaseException:  # noqa: BLE001  whatever it was, this fork must not go on with the server's work
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)


def sort(place: Path, into: Path, state: Path, *, broken: bool) -> None:
    inbox = place / "inbox"
    folders = Folders(sorted=into, review=place / "review", rejected=place / "rejected")
    with ledger.Ledger(state / ledger.FILE) as book:
        filing = _filing(inbox, folders, book, is_broken=broken)
        verdicts = judge(inbox)
        for start in range(0, len(verdicts), BATCH):
            filing.file(verdicts[start : start + BATCH])
        filing.settle_debts()


def _filing(inbox: Path, folders: Folders, book: ledger.Ledger, *, is_broken: bool):
    if is_broken:
        return broken.Filing(inbox, folders, book)
    returning.recover(book)
    recovery.recover(book)
    return Filing(inbox, folders, book)


def judge(inbox: Path) -> Sequence[Verdict]:
    intake = Intake(settle_s=0.0, patience_s=0.0)
    verdicts = []
    for path in sorted(Path(entry.path) for entry in files_below(inbox, recursive=True)):
        ready = intake.examine(Arrival(path=path, noticed_at=time.monotonic()))
        assert isinstance(ready, Ready), ready
        verdicts.append(_verdict(ready))
    return verdicts


def _verdict(ready: Ready) -> Verdict:
    with os.fdopen(ready.descriptor, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    label = ready.path.name.partition("-")[0]
    event = label if label in {"review", "rejected"} else "sorted"
    return Verdict(
        path=ready.path,
        identity=ready.identity,
        noticed_at=ready.noticed_at,
        event=event,
        label=label if event == "sorted" else None,
        reason=None if event == "sorted" else "because of its name",
        sha256=digest,
    )


if __name__ == "__main__":
    main()
