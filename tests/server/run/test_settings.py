"""A resumed run: settings that must be the ledger's, and the log of those that may change."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_grid import FakeGrid

from server.app import check_before_start
from server.rounds.federation import LEDGER_NAME, Federation
from server.run.log import SETTINGS_LOG
from server.run.model import open_header
from server.run.settings import fixed_changes, ledger_settings, recorded_settings
from zo_common.config.run import SETTINGS, RunConfig
from zo_common.errors import ConfigError
from zo_common.ledger.file import LedgerFile
from zo_common.ledger.ledger import LedgerHeader, TensorEntry

Settings = Callable[..., RunConfig]
Grids = Callable[..., FakeGrid]
Federate = Callable[..., Federation]

BASE: dict[str, Any] = {"model": "somewhere", "data": "speech", "learning_rate": 1e-3, "epsilon": 1e-3}
PRIVATE: dict[str, Any] = BASE | {"privacy": "device", "directions": "shared", "weighting": "uniform"}
PRIVATE |= {"noise_multiplier": 1.5, "clip_norm": 5.0, "target_delta": 1e-3, "noise_by": "server"}
CHANGES: dict[str, Any] = {
    "train_split": "more",
    "text_column": "text",
    "language": "de",
    "fold_accents": True,
    "partition_by": "iid",
    "trained_tensors": "encoder-conv",
    "scale": "rms",
    "objective": "self-training",
    "temperature": 1.0,
    "entropy_weight": 0.5,
    "min_confidence": 0.5,
    "estimator": "two-sided",
    "num_queries": 4,
    "epsilon": 2e-3,
    "batch_size": 8,
    "clip_utterances": 0.0,
    "local_steps": 2,
    "directions": "shared",
    "weighting": "uniform",
    "aggregation": "norm-clipping",
    "secure_aggregation": True,
    "secure_threshold": 0.75,
    "secure_neighbours": 4,
    "run_seed": 9,
    "privacy": "example",
}
PRIVATE_CHANGES: dict[str, Any] = {
    "target_epsilon": 20.0,
    "target_delta": 1e-4,
    "clip_norm": 1.0,
    "noise_multiplier": 0.5,
    "noise_by": "devices",
}
NEEDED: dict[str, dict[str, Any]] = {
    "secure_aggregation": {"directions": "shared"},
    "aggregation": {"weighting": "uniform", "min_replies": 3},
}
FIXED = {each.name: each for each in SETTINGS if each.fixed}


def _header(config: RunConfig) -> LedgerHeader:
    return open_header(config, ("ab" * 32, 7, (TensorEntry("w", (3,), -24, 0),)))


def _begun(output: Path, values: dict[str, Any]) -> RunConfig:
    """The settings to go on with a run whose ledger has no round yet."""
    config = RunConfig(**values, output=str(output))
    LedgerFile.create(output / LEDGER_NAME, _header(config))
    return replace(config, resume=True)


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_fixed_setting_is_tried_below() -> None:
    assert set(FIXED) == set(CHANGES) | set(PRIVATE_CHANGES)


@pytest.mark.parametrize("name", FIXED)
def test_a_fixed_setting_is_refused_with_old_value_new_value_and_remedy(tmp_path: Path, name: str) -> None:
    private = name in PRIVATE_CHANGES
    config = _begun(tmp_path, PRIVATE if private else BASE)
    value = (CHANGES | PRIVATE_CHANGES)[name]
    needed = NEEDED.get(name, {})
    before, key, old = _files(tmp_path), FIXED[name].key, getattr(config, name)
    other = replace(config, **needed, **{name: value})

    with pytest.raises(ConfigError) as caught:
        check_before_start(other)

    word = str(caught.value)
    assert f"{key} is {old!r} in the ledger, {value!r} was asked" in word
    assert f"{key}={str(old).lower() if isinstance(old, bool) else old}" in word
    assert word.endswith("to resume this run, or name another output for a new one")
    assert _files(tmp_path) == before


@pytest.mark.parametrize("server_model", [True, False])
def test_other_directions_are_refused_before_any_device_is_asked(
    settings: Settings, federate: Federate, grid_of: Grids, server_model: bool
) -> None:
    config = settings(num_server_rounds=1, partition_by="iid", server_model=server_model)
    federate(config, grid_of(config, devices=1))
    other = replace(config, resume=True, num_server_rounds=2, directions="shared")
    grid, before = grid_of(other, devices=1), _files(Path(config.output))
    asked: list[int] = []
    grid.on_push = asked.append

    with pytest.raises(
        ConfigError, match=r"^directions is 'independent' in the ledger, 'shared' was asked: set directions=independent"
    ):
        Federation(other, grid)

    assert not asked
    assert _files(Path(config.output)) == before


def test_free_settings_are_told_in_one_line_and_logged(
    settings: Settings, federate: Federate, grid_of: Grids, observed: Any
) -> None:
    config = settings(num_server_rounds=1, partition_by="iid", lr_schedule="constant")
    grid = grid_of(config, devices=1)
    federate(config, grid)
    assert "other settings" not in observed.text

    federate(replace(config, resume=True, num_server_rounds=2, learning_rate=0.01, torch_threads=1), grid)

    word = "resumed with other settings: learning-rate 0.05 → 0.01, num-server-rounds 1 → 2"
    assert observed.words.count(word) == 1
    rows = [json.loads(line) for line in (Path(config.output) / SETTINGS_LOG).read_text().splitlines()]
    assert [row["after_round"] for row in rows] == [0, 1]
    assert [row["changed"] for row in rows] == [{}, {"learning-rate": [0.05, 0.01], "num-server-rounds": [1, 2]}]
    assert rows[1]["settings"]["learning-rate"] == 0.01


def test_without_the_log_the_ledger_tells_what_was_changed(
    settings: Settings, federate: Federate, grid_of: Grids, observed: Any
) -> None:
    config = settings(num_server_rounds=1, partition_by="iid")
    grid = grid_of(config, devices=1)
    federate(config, grid)
    (Path(config.output) / SETTINGS_LOG).unlink()

    federate(replace(config, resume=True, learning_rate=0.01), grid)

    assert "resumed with other settings: learning-rate 0.05 → 0.01" in observed.words


def test_what_an_older_ledger_does_not_tell_is_not_compared() -> None:
    config = RunConfig(**BASE)
    older = replace(_header(config), settings={"learning-rate": 1e-3, "directions": "independent"})

    assert fixed_changes(older, replace(config, batch_size=8, text_column="text")) == []
    assert fixed_changes(older, replace(config, directions="shared")) == [("directions", "independent", "shared")]
    assert fixed_changes(older, replace(config, privacy="example")) == [("privacy", "none", "example")]


def test_what_the_run_chose_itself_may_be_left_open() -> None:
    chosen = _header(RunConfig(**PRIVATE | {"trained_tensors": "encoder-conv"}))
    unsettled = RunConfig(**PRIVATE | {"trained_tensors": "auto", "noise_multiplier": 0.0})

    assert fixed_changes(chosen, unsettled) == []


def test_a_ledger_tells_every_fixed_setting_and_no_path() -> None:
    fixed = {each.key for each in SETTINGS if each.fixed}
    values = PRIVATE | {"output": "/home/anna/run", "feature_cache": "/home/anna/cache"}

    assert fixed <= set(recorded_settings(_header(RunConfig(**values))))
    assert not {"data", "output", "feature-cache", "model"} & set(ledger_settings(RunConfig(**values)))
    public = ledger_settings(RunConfig(**BASE))
    assert public["privacy"] == "none"
    assert "target-epsilon" not in public


def test_several_changes_are_named_together(tmp_path: Path) -> None:
    config = _begun(tmp_path, BASE)

    with pytest.raises(
        ConfigError, match=r"batch-size is 4 .*; local-steps is 1 .*: set batch-size=4 local-steps=1 to"
    ):
        check_before_start(replace(config, batch_size=8, local_steps=2))
