"""Combination of ledgers of several runs on one base: dialect adapters can be added, weighted and subtracted."""

from __future__ import annotations

from dataclasses import replace

from zo_common.ledger.ledger import Ledger, require_same_base
from zo_common.ledger.record import Record


def combine(ledgers: list[Ledger], weights: list[float], created: str) -> Ledger:
    """Return one ledger with the weighted updates of several on one base; weight −1 subtracts.

    The order of ledgers does not affect the weights. Checksums are unknown until the ledger is replayed.

    Raises:
        LedgerError: the ledgers differ in base model, trained tensors or scale.
    """
    first = ledgers[0].header
    records: list[Record] = []
    for ledger, weight in zip(ledgers, weights, strict=True):
        require_same_base(first, ledger.header)
        for record in ledger.records:
            scaled = tuple(c if weight == 1 else c.scaled(weight) for c in record.contributions)
            records.append(Record(len(records) + 1, 0, scaled))
    settings = {
        "combined": [{"run_seed": x.header.run_seed, "weight": w} for x, w in zip(ledgers, weights, strict=True)]
    }
    return Ledger(replace(first, created=created, settings=settings), tuple(records))
