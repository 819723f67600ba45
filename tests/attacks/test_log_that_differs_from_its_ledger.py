"""Attack: a run with little noise comes with a log of charges for much, whole in itself and chained to the ledger."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from server.commands.privacy import verify
from server.run.state import LEDGER_NAME
from zo_common.errors import LedgerAltered
from zo_common.ledger.file import LedgerFile
from zo_common.ledger.ledger import LedgerHeader, TensorEntry
from zo_common.ledger.record import Contribution, Record
from zo_common.privacy.accountant import Release, epsilon_spent
from zo_common.privacy.charges import LOG_NAME, Charge, PrivacyLog

SETTINGS = {
    "privacy": "example",
    "target-epsilon": 8.0,
    "target-delta": 1e-3,
    "directions": "independent",
    "noise-multiplier": 0.3,
    "local-steps": 2,
    "batch-size": 4,
}
NOISE, STEPS, BATCH, DELTA = 0.3, 2, 4, 1e-3  # as the header says


def _run(folder: Path, charge: Charge) -> Path:
    """A run of one round, whose log holds this charge."""
    tensors = (TensorEntry("w", (4,), -24, 0),)
    header = LedgerHeader("ab" * 32, 1, "m", "all", "unit", 1e-3, "two-sided", 0, "now", tensors, SETTINGS)
    ledger = LedgerFile.create(folder / LEDGER_NAME, header)
    PrivacyLog.create(folder / LOG_NAME).append(charge)
    ledger.append(Record(1, 7, (Contribution(1, 5, np.ones((2, 2), np.float32)),)))
    return folder


def _charge(folder: Path, noise: float, steps: int, batch: int, delta: float) -> Charge:
    spent = epsilon_spent({Release(noise, batch, 9): steps}, delta)
    probe = folder / "probe.zo"
    tensors = (TensorEntry("w", (4,), -24, 0),)
    header = LedgerHeader("ab" * 32, 1, "m", "all", "unit", 1e-3, "two-sided", 0, "now", tensors, SETTINGS)
    chain = LedgerFile.create(probe, header).chains[0].hex()
    return Charge(1, chain, "example", noise, steps, batch, {9: [5]}, spent, delta)


@pytest.mark.parametrize(
    ("noise", "steps", "batch", "delta", "word"),
    [
        (6.0, STEPS, BATCH, DELTA, "charged for noise-multiplier 6.0, the ledger's header says 0.3"),
        (NOISE, 1, BATCH, DELTA, "charged for local-steps 1"),
        (NOISE, STEPS, 1, DELTA, "charged for batch-size 1"),
        (NOISE, STEPS, BATCH, 0.5, "charged for target-delta 0.5"),
    ],
)
def test_a_log_of_other_charges_does_not_hold(
    tmp_path: Path, noise: float, steps: int, batch: int, delta: float, word: str
) -> None:
    run = _run(tmp_path, _charge(tmp_path, noise, steps, batch, delta))
    with pytest.raises(LedgerAltered, match=word):
        verify(run)


def test_the_honest_log_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verify(_run(tmp_path, _charge(tmp_path, NOISE, STEPS, BATCH, DELTA)))
    assert "all of them hold" in capsys.readouterr().out
