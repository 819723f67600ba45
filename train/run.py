"""Training on a folder of recordings, in this process."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from client.device.warm import forget_all
from server.app import run_on
from server.devices.enrolment import Enrolment
from server.rounds.events import Events
from server.rounds.federation import refuse_used_ledger
from server.rounds.result import RunResult
from server.run.log import RoundReport
from server.run.output import check_output
from simulations.before_start import read_train_split
from simulations.models.whisper_import import bundled_whisper
from train.one_process import OneProcess
from zo_common.config.run import RunConfig
from zo_common.errors import ConfigError
from zo_common.models.load import model_config
from zo_common.speech.splits import splits_of

ALONE: dict[str, int] = {"num_server_rounds": 320, "guard_every": 32}
"""Defaults for one device: as many forward passes as eight devices in 40 rounds, and as many between guard checks."""


def train(
    recordings: str | Path, *, on_round: Callable[[RoundReport], None] | None = None, **settings: Any
) -> RunResult:
    """Fine-tune a model on the train split of some recordings, by forward passes alone, and return the result.

    The rounds are those of a federation with one device: the same updates, checks, guard, ledger and files. An
    interrupted run is resumed with `resume=True` and the same `output`; the result is the same bit for bit.

    Args:
        recordings: folder or hub id, as `data` of a run.
        on_round: called after each round, once it is in the ledger.
        settings: fields of `RunConfig`, such as `model`, `eval_split`, `output`, `num_server_rounds`, `device`.
            Defaults: the bundled Whisper-tiny.en as `model`, a folder `results/<time>-train` as `output`, the split
            test (if there is one) as `eval_split`, and `ALONE` for rounds and the guard.

    Raises:
        ConfigError: a setting is wrong, or is of several devices.
        ModelNotFound, UnsupportedModel, DataError …: model or speech cannot be used; raised before the first round.
        ZOError: as in a federation.
    """
    config = config_for(recordings, settings)
    run_here(config, Events(on_round=on_round) if on_round is not None else None)
    return RunResult.of(config)


def config_for(recordings: str | Path, settings: dict[str, Any]) -> RunConfig:
    """Return the settings of a run on one machine; see `train` for the defaults.

    Raises:
        ConfigError: as `train`.
    """
    folder = Path(recordings).expanduser()
    data = str(folder.resolve()) if folder.exists() else str(recordings)
    usual = {**ALONE, "output": f"results/{time.strftime('%Y%m%d-%H%M%S')}-train", "data": data}
    given = {key.replace("-", "_") for key in settings}
    if "eval_split" not in given:
        usual["eval_split"] = "test" if "test" in splits_of(data) else ""
    chosen = {name: value for name, value in usual.items() if name not in given}
    config = RunConfig.from_mapping(chosen | settings)
    refuse_several_devices(config)
    return config if config.model else replace(config, model=str(bundled_whisper(Path("models")).resolve()))


def refuse_several_devices(config: RunConfig) -> None:
    """Refuse settings that need several devices.

    Raises:
        ConfigError: names the setting and its value.
    """
    alone = {
        "server-model": (config.server_model, True),
        "secure-aggregation": (config.secure_aggregation, False),
        "evaluate-on": (config.evaluate_on, "server"),
        "aggregation": (config.aggregation, "mean"),
        "drop-out": (config.drop_out, 0.0),
        "min-clients": (config.min_clients, 1),
        "min-replies": (config.min_replies, 1),
        "late-joiners": (config.late_joiners, 0),
    }
    for key, (value, expected) in alone.items():
        if value != expected:
            raise ConfigError(
                f"{key} is {value!r} in training on one machine, expected {expected!r}: it is for several devices, "
                "see 'zo-asr sim run'"
            )


def check_here(config: RunConfig) -> None:
    """Raise at once what the run would raise later: on the table of recordings, the name of the model, the output.

    Raises:
        ConfigError, ModelNotFound, UnsupportedModel: one sentence, with the remedy.
    """
    read_train_split(config)
    model_config(config.model)
    check_output(config)
    refuse_used_ledger(config)


def run_here(config: RunConfig, events: Events | None = None, on_start: Callable[[], None] | None = None) -> None:
    """Run all rounds in this process, with one copy of the model; writes the files of a run to `output`.

    Args:
        on_start: called after the checks that need no model.

    Raises:
        ZOError: as `train`.
    """
    check_here(config)
    if on_start is not None:
        on_start()
    forget_all()  # of an earlier run in this process
    place = OneProcess(config)
    try:
        run_on(place.grid, config, events, place.model_of, Enrolment(own_devices=True))
    finally:
        forget_all()
