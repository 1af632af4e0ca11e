"""What a dry run files with: nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence

from daemon.filing import Filed, Folders, Outcome, Verdict


class DryRun:
    """Stands in for Filing when nothing may be moved: answers where each photo would go."""

    def __init__(self, folders: Folders) -> None:
        self._folders = folders

    def file(self, verdicts: Sequence[Verdict]) -> Outcome:
        """Where the photos of a batch would go."""
        filed = [
            Filed(
                id=0,
                verdict=verdict,
                destination=self._folders.of(verdict) / verdict.path.name,
                latency_ms=(time.monotonic() - verdict.noticed_at) * 1e3,
            )
            for verdict in verdicts
        ]
        return Outcome(filed=filed, changed=[], refused=[])

    def settle_debts(self) -> None:
        """Nothing is ever owed."""
