"""A filing as one would write it in a hurry: what the tests here must be able to tell from ours.

A plain rename, no intent before it, nothing synced, the row afterwards.
"""

import os
import shutil
import sys

from daemon import filing


class Filing:
    """Has the methods of daemon.filing.Filing, and keeps none of its promises."""

    def __init__(self, _inbox, folders, ledger) -> None:
        self._folders = folders
        self._ledger = ledger
        ledger._connection.execute("PRAGMA synchronous = OFF")
        self._entries = filing.Filing(_inbox, folders, ledger)._entry

    def file(self, verdicts):
        filed = []
        for verdict in verdicts:
            destination = self._folders.of(verdict) / verdict.path.name
            destination.parent.mkdir(exist_ok=True)
            if verdict.path.stat().st_dev == destination.parent.stat().st_dev:
                os.rename(verdict.path, destination)
            else:
                shutil.move(verdict.path, destination)
            [row_id] = self._ledger.begin([self._entries(verdict, set())])
            self._ledger.redirect(row_id, destination)
            self._ledger.finish([(row_id, 0.0)])
            filed.append(filing.Filed(id=row_id, verdict=verdict, destination=destination, latency_ms=0.0))
        return filing.Outcome(filed=filed, changed=[], refused=[])

    def settle_debts(self) -> None:
        """Owes nothing, because it never promised."""


def main() -> None:
    """The command `pawsort` with this filing in it."""
    from daemon import __main__ as program
    from daemon import recovery, service

    service.Filing = Filing
    recovery.recover = lambda _: recovery.Recovered()
    sys.argv[0] = "pawsort"
    program.main()


if __name__ == "__main__":
    main()
