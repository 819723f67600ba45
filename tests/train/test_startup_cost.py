"""A start of training is bounded in processor time, so that a machine that is busy fails no test."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.cost.startup import processor_seconds, run_of

MOST_SECONDS = 60.0  # about ten on one core of 2024


@pytest.mark.slow
def test_a_start_with_its_loss_check_takes_seconds_of_processor_time(
    tiny_whisper: Path, mini_corpus: Path, tmp_path: Path
) -> None:
    code = run_of(mini_corpus, tiny_whisper, tmp_path / "run", loss_check=True)

    assert 0 < processor_seconds(code) < MOST_SECONDS
    assert (tmp_path / "run" / "ledger.zo").exists()
