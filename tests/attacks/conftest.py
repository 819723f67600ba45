"""The tiny federation's fixtures, and a device with a worker, for attacks on them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures import *  # noqa: F403
from secure_worker import Victim


@pytest.fixture
def victim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Victim]:
    made = Victim(tmp_path, monkeypatch)
    yield made
    made.close()
