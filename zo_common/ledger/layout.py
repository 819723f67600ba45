"""The name of a run's ledger and the size of its chain values, for those who read no rounds."""

from __future__ import annotations

LEDGER_NAME = "ledger.zo"  # in the folder of a run
CHAIN_BYTES = 16
