"""The verdict on a run: one sentence on what is worse after it than before."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from server.rounds.federation import Federation
from server.run.log import EVALUATION
from zo_common.errors import RunStopped
from zo_common.ledger.record import Record


def verdict_on(
    federation: Federation, before: dict[str, Any] | None, after: dict[str, Any] | None, stopped: str = ""
) -> str:
    """Return what is wrong with a run's result, in one sentence; empty if nothing is.

    Args:
        before: the evaluation of the base model, from `Evaluation.summary`; None without one.
        after: the evaluation of the exported model.
        stopped: why the run stopped before its last round.
    """
    ledger = federation.ledger.ledger
    if stopped:
        return stopped
    global_model = federation.global_model is not None
    left = "the base model is exported unchanged" if global_model else "the ledger leads to the base model"
    if not answered(federation):
        return "no round had a valid reply, no model is exported: the log says why replies were refused"
    same = federation.checksum == ledger.header.base_checksum if global_model else not moved(ledger.records)
    if ledger.records and same:
        guard = federation.guard.summary()
        if guard is not None and (guard["taken_back"] or guard["closing"]["chosen"] == "best"):
            return (
                f"no round made the model better on the guard's speech, {left}: lower the learning rate, or train on "
                "more speech"
            )
        return (
            f"no round changed the model, {left}: rounds.jsonl has each round's learning rate, look whether all are 0"
        )
    return worse(before, after)


def answered(federation: Federation) -> bool:
    """Return whether any round of the run, including those before a resume, had a valid reply."""
    rows, records = federation.log.rows, federation.ledger.ledger.records
    return any(row["answered"] for row in rows) or any(record.contributions for record in records)


def moved(records: Iterable[Record]) -> bool:
    """Return whether a ledger's records change the model, i.e. do not all undo each other; needs no model."""
    left: Counter[tuple[int, int, int, float]] = Counter()
    for record in records:
        for contribution in record.contributions:
            for (step, query), value in np.ndenumerate(contribution.coefficients):
                left[contribution.seed, step, query, abs(float(value))] += int(np.sign(value))
    return any(left.values())


def worse(before: dict[str, Any] | None, after: dict[str, Any] | None) -> str:
    """Return a sentence if the loss or the main error rate (if both were decoded) rose or became NaN; else ""."""
    if not before or not after:
        return ""
    faults = []
    rate = after.get("headline", "wer")
    if rate in before and rate in after and not after[rate] <= before[rate]:
        faults.append(f"{rate.upper()} {before[rate]:.1%} → {after[rate]:.1%}")
    if not after["loss"] <= before["loss"]:
        faults.append(f"loss {before['loss']:.3f} → {after['loss']:.3f}")
    return f"the result is worse than its start: {', '.join(faults)}" if faults else ""


def raise_if_worse(output: Path) -> None:
    """End a command if its run wrote a verdict to `evaluation.json`.

    Raises:
        RunStopped: with the verdict.
    """
    if verdict := json.loads((output / EVALUATION).read_text())["verdict"]:
        raise RunStopped(verdict)
