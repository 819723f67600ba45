"""Any module with a per-example loss: it is trained in place, guarded, and its ledger leads to the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from server.run.log import RoundReport
from train import train_module
from zo_common.errors import ConfigError, PatternError, WrongBaseModel
from zo_common.ledger.replay import replay

Pair = tuple[torch.Tensor, torch.Tensor]


def _module() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def _examples(count: int = 24) -> list[Pair]:
    inputs = torch.randn(count, 4, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        targets = _module()(1.5 * inputs).clone()
    return list(zip(inputs.clone(), targets, strict=True))


def _losses(module: nn.Module) -> Any:
    def losses(batch: list[Pair]) -> torch.Tensor:
        inputs, targets = (torch.stack(column) for column in zip(*batch, strict=True))
        return (module(inputs) - targets).square().mean(dim=1)

    return losses


def _train(module: nn.Module, output: Path, **changes: Any) -> Any:
    settings = {"num_server_rounds": 12, "epsilon": 1e-2, "batch_size": 8, "clip_utterances": 0.0, "guard_every": 2}
    given = {"learning_rate": 0.05, "held_out": _examples(32)[24:], "output": str(output)} | settings | changes
    return train_module(module, _losses(module), _examples(), **given)


def test_a_module_gets_better_and_its_ledger_leads_there(tmp_path: Path) -> None:
    module = _module()
    told: list[RoundReport] = []

    result = _train(module, tmp_path / "run", on_round=told.append)

    assert result.verdict == "" and result.after["loss"] < result.before["loss"]
    assert len(told) == 12
    again = _module().requires_grad_(False)
    assert f"{replay(again, result.ledger):016x}" == result.checksum
    for ours, theirs in zip(module.parameters(), again.parameters(), strict=True):
        assert ours.equal(theirs)


def test_a_run_that_was_interrupted_goes_on_from_the_base_to_the_same_bits(tmp_path: Path) -> None:
    whole = _train(_module(), tmp_path / "whole")

    def interrupt(report: RoundReport) -> None:
        if report.server_round == 5:
            raise KeyboardInterrupt

    torn = _module()
    with pytest.raises(KeyboardInterrupt):
        _train(torn, tmp_path / "torn", on_round=interrupt)
    with pytest.raises(WrongBaseModel):
        _train(torn, tmp_path / "torn", resume=True)
    resumed = _train(_module(), tmp_path / "torn", resume=True)

    assert resumed.checksum == whole.checksum


def test_the_guard_takes_back_what_is_worse(tmp_path: Path) -> None:
    result = _train(_module(), tmp_path / "run", learning_rate=1.0)

    assert result.after["loss"] <= result.before["loss"]
    assert json.loads((result.output / "evaluation.json").read_text())["guard"]["taken_back"]


@pytest.mark.parametrize(
    ("changes", "error", "word"),
    [
        ({"trained_tensors": "decoder.*"}, PatternError, "decoder"),
        ({"learning_rate": "auto"}, ConfigError, "learning-rate is 'auto'"),
        ({"lerning_rate": 1}, ConfigError, "did you mean 'learning-rate'"),
        ({"frozen_precision": "int8"}, ConfigError, "frozen-precision is 'int8' for a module"),
    ],
)
def test_what_cannot_be_trained_is_refused(tmp_path: Path, changes: Any, error: Any, word: str) -> None:
    with pytest.raises(error, match=word):
        _train(_module(), tmp_path / "run", **changes)

    assert not (tmp_path / "run" / "ledger.zo").exists()
