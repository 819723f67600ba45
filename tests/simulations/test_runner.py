"""The levels of other packages' loggers around a simulation: as the caller set them, once it has ended."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from typing import Any

import flwr.simulation
import pytest
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from transformers.utils import logging as transformers_logging

from simulations import runner
from zo_common.errors import ConfigError


def _levels() -> list[int]:
    return [logging.getLogger(name).level for name in ("flwr", "ray")] + [transformers_logging.get_verbosity()]


@pytest.mark.parametrize("fails", [False, True])
def test_the_levels_of_other_packages_are_the_callers(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    within: list[int] = []

    def engine(*_: Any, **__: Any) -> None:
        within.extend(_levels())
        if fails:
            raise RuntimeError("no memory")

    monkeypatch.setattr(flwr.simulation, "run_simulation", engine)
    monkeypatch.setattr(runner, "ray_out_of_signals", lambda **_: nullcontext())
    monkeypatch.setenv("PYTHONPATH", "")
    before = transformers_logging.get_verbosity()
    try:
        transformers_logging.set_verbosity_info()
        expected = _levels()
        with pytest.raises(ConfigError, match="the simulation engine stopped") if fails else nullcontext():
            runner.simulate(ServerApp(), ClientApp(), 2, 1)
        assert within == [logging.ERROR] * 3 != expected
        assert _levels() == expected
    finally:
        transformers_logging.set_verbosity(before)
