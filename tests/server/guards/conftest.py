"""Supervised runs whose guard finds losses that a test sets."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from guard_log import LOSSES, NOISE

from zo_common.config.run import RunConfig

Settings = Callable[..., RunConfig]


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[float]]:
    """Replaces the mean losses that the guard's checks find, one after the other."""

    def script(*checks: float) -> list[float]:
        left = list(checks)
        monkeypatch.setattr(LOSSES, lambda *_: left.pop(0) + NOISE)
        return left

    return script


@pytest.fixture
def guarded(ctc_settings: Settings) -> Settings:
    """Settings of a supervised run that is guarded on three utterances."""
    return lambda **changes: ctc_settings(**{"eval_split": "", "guard_split": "test", "guard_every": 1, **changes})
