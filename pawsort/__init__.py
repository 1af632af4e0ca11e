"""What the daemon and the trainer both know: settings, pictures, models, the ledger.

This package imports neither `daemon` nor `trainer`; both import it.
"""

__version__ = "0.1.0"
