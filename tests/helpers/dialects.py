"""Ledgers of random rounds on one base, as runs of several dialects leave them."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from torch import nn

from zo_common.lattice.fingerprint import fingerprint
from zo_common.lattice.state import LatticeState
from zo_common.ledger.ledger import Ledger, LedgerHeader, describe_tensors
from zo_common.ledger.record import Contribution, Record


def dialect_of(
    base: nn.Module,
    seed: int,
    *,
    pattern: str = "all",
    scale: Any = "unit",
    rounds: int = 3,
    size: float = 1e-3,
    model: str = "a-base",
    **settings: Any,
) -> Ledger:
    """A ledger of `rounds` rounds of two clients with 2 × 3 random coefficients; the base stays as it is."""
    moved = copy.deepcopy(base)
    state = LatticeState(moved, pattern, scale, threads=1)
    header = LedgerHeader(
        fingerprint(base), state.checksum(), model, pattern, scale, 1e-3, "leave-one-out", seed, "2026-01-01T00:00:00Z",
        describe_tensors(state), settings,
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    records: list[Record] = []
    for server_round in range(1, rounds + 1):
        shares = tuple(
            Contribution(int(rng.integers(1 << 60)), client, (size * rng.standard_normal((2, 3))).astype(np.float32))
            for client in (1, 2)
        )
        record = Record(server_round, 0, shares)
        state.apply(record.updates())
        records.append(Record(server_round, state.checksum(), shares))
    return Ledger(header, tuple(records))
