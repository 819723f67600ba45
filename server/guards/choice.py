"""Choice of a run's guard: the speech on which it checks the model, or why there is no guard."""

from __future__ import annotations

import logging
from pathlib import Path

from server.guards.collapse_guard import CollapseGuard
from server.guards.device_guard import Ask, DeviceGuard
from server.guards.device_losses import DeviceLosses
from server.guards.guard import Guard
from server.guards.held_out_guard import HeldOutGuard
from server.guards.round_guard import OnStage
from server.run.model import GlobalModel
from zo_common.config.run import RunConfig
from zo_common.errors import ConfigError, DataError
from zo_common.models.hub import is_hub_id
from zo_common.speech.splits import DEVELOPMENT, server_split

logger = logging.getLogger(__name__)
NO_GUARD = "none"


def guard_for(
    config: RunConfig,
    global_model: GlobalModel | None,
    on_stage: OnStage = lambda label, done, total: None,
    ask: Ask = lambda: DeviceLosses({}),
) -> Guard:
    """Return the guard of a run; it accepts every round if `guard-split` is "none" or there is no held-out speech.

    Without `guard-split`, a supervised run is guarded on the first split of `data` called dev, validation or valid,
    else on `eval-split` if the server evaluates. If the server has neither speech nor a model, or if devices
    evaluate, it is guarded on the devices' held-out speech. A run without a guard logs why, unless it asked for none.

    Args:
        ask: function that returns the devices' losses at the ledger's last state.

    Raises:
        ConfigError: `guard-split` is set for a run without transcripts, and there is no server model.
        DataError: the server's split that `guard-split` names cannot be read.
    """
    split = config.guard_split
    if split == NO_GUARD:
        return Guard(config)
    if not config.needs_text:
        return _against_collapse(config, global_model, on_stage)
    if global_model is None or (split and not config.data):
        return _on_devices(config, global_model, ask)
    if not split:
        return _default_guard(config, global_model, on_stage, ask)
    _tell_what_is_reported(config)
    return HeldOutGuard(config, global_model, split, on_stage, skip_bad=config.skip_bad)


def _against_collapse(config: RunConfig, global_model: GlobalModel | None, on_stage: OnStage) -> Guard:
    split = config.guard_split
    if not split:
        logger.warning(
            f"objective {config.objective} has no guard against collapse: "
            "set guard-split to a labelled split on the server"
        )
        return Guard(config)
    if global_model is None:
        raise ConfigError(
            f"guard-split is {split!r} and server-model is off, but the guard checks the server's model: leave one "
            "of the two out"
        )
    _tell_what_is_reported(config)
    return CollapseGuard(config, global_model, on_stage)


def _tell_what_is_reported(config: RunConfig) -> None:
    if config.guard_split == config.eval_split:
        logger.warning(
            f"guard-split and eval-split are both {config.guard_split!r}: the reported split has chosen the rounds"
        )


def _default_guard(config: RunConfig, global_model: GlobalModel, on_stage: OnStage, ask: Ask) -> Guard:
    """Return a guard on the available speech; errors in that speech do not stop a run that did not ask for a guard."""
    split = server_split(config)
    if not split and (config.evaluate_on == "clients" or not config.data):
        return _on_devices(config, global_model, ask)
    if not split:
        logger.warning(f"no guard: {_why_none(config)}")
        return Guard(config)
    try:
        guard = HeldOutGuard(config, global_model, split, on_stage, skip_bad=True)
    except DataError as error:
        logger.warning(f"no guard: split {split!r} cannot be used: {error.problems[0]}")
        return Guard(config)
    if split == config.eval_split:
        logger.warning(
            f"the guard checks eval-split {split!r}: the reported split has chosen the rounds (name another split as "
            "guard-split, or 'none')"
        )
    return guard


def _on_devices(config: RunConfig, global_model: GlobalModel | None, ask: Ask) -> Guard:
    """Return a guard on the devices' held-out speech, unless the server must not see single devices' losses."""
    if config.privacy != "none" or config.secure_aggregation:
        promise = f"privacy is {config.privacy!r}" if config.privacy != "none" else "secure-aggregation is on"
        logger.warning(
            f"no guard: the server has no held-out speech, {promise}, and devices' losses would be sent in the clear; "
            "give the server's data a split dev, and its model"
        )
        return Guard(config)
    return DeviceGuard(config, global_model, ask)


def _why_none(config: RunConfig) -> str:
    """Return why there is no split for the guard, and the remedy."""
    data = config.data
    named = "eval-split is not set; name a split as guard-split"
    if Path(data).expanduser().exists():
        return f"{data!r} has no split called {', '.join(DEVELOPMENT)} that is free for it, and {named}"
    if is_hub_id(data):
        return f"which splits {data!r} has is not asked of the hub, and {named}"
    return (
        f"the server has no recordings in {data!r}; put transcribed ones there, with a split dev, or set "
        "evaluate-on=clients, and the devices' splits called dev are used"
    )
