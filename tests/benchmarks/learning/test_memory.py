"""The memory of one device's step, of every kind that is measured, on a model of milliseconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.learning.memory import STEPS, child
from simulations.models.tiny import write_tiny_whisper


@pytest.fixture(scope="module")
def model(whisper_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_whisper(whisper_dir, tmp_path_factory.mktemp("whisper") / "model"))


@pytest.mark.parametrize("name", STEPS)
def test_every_kind_of_step_is_made(name: str, model: str) -> None:
    found = child(name, model, 32)

    assert found["peak"] > 0 and found["seconds"] > 0
