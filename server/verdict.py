"""Whether a run came to anything: what is worse after it than before, in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from server.federation import Federation
from zo_common.errors import RunStopped

EVALUATION = "evaluation.json"


def verdict_on(federation: Federation, before: dict[str, Any] | None, after: dict[str, Any] | None) -> str:
    """What is wrong with a run's result, in one sentence; empty if nothing is.

    Args:
        before: the evaluation of the base model, as `Evaluation.summary` gives it; None where there was none.
        after: that of the exported model.
    """
    ledger = federation.ledger.ledger
    answered = any(row["answered"] for row in federation.log.rows)
    if not answered and not any(record.contributions for record in ledger.records):
        return "no round had a valid reply, the base model is exported unchanged: the log says why replies were refused"
    if ledger.records and federation.checksum == ledger.header.base_checksum:
        if federation.guard.summary() is not None:
            return (
                "no round made the model better on the guard's speech, the base model is exported unchanged: lower the "
                "learning rate, or train on more speech"
            )
        return (
            "no round changed the model, the base model is exported unchanged: rounds.jsonl has each round's learning "
            "rate, look whether all are 0"
        )
    return worse(before, after)


def worse(before: dict[str, Any] | None, after: dict[str, Any] | None) -> str:
    """A sentence if loss, or word error rate where both were decoded, rose or is not a number any more."""
    if not before or not after:
        return ""
    faults = []
    if "wer" in before and "wer" in after and not after["wer"] <= before["wer"]:
        faults.append(f"WER {before['wer']:.1%} → {after['wer']:.1%}")
    if not after["loss"] <= before["loss"]:
        faults.append(f"loss {before['loss']:.3f} → {after['loss']:.3f}")
    return f"the result is worse than its start: {', '.join(faults)}" if faults else ""


def raise_if_worse(output: Path) -> None:
    """End a command whose run left a verdict in `evaluation.json`.

    Raises:
        RunStopped: with the verdict.
    """
    if word := json.loads((output / EVALUATION).read_text())["verdict"]:
        raise RunStopped(word)
