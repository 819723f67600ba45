"""Which guard a run has: on what speech it looks, or why there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from client.splits import splits_of
from server.global_model import GlobalModel
from server.guards.collapse_guard import CollapseGuard
from server.guards.guard import Guard
from server.guards.held_out_guard import HeldOutGuard
from server.guards.round_guard import OnStage
from zo_common.config import RunConfig
from zo_common.errors import ConfigError, DataError

NO_GUARD = "none"
_DEVELOPMENT = ("dev", "validation", "valid")  # splits that are there to be looked at during a run, the first first


def guard_for(
    config: RunConfig,
    held: GlobalModel | None,
    on_word: Callable[[str], None],
    on_stage: OnStage = lambda label, done, total: None,
) -> Guard:
    """The guard of a run; one that lets all pass where `guard-split` is "none" or there is nothing to look at.

    Without `guard-split`, a supervised run is guarded on the first split of `data` called dev, validation or valid,
    else on `eval-split` where the server evaluates. Why a run has none is told, unless it asked for none.

    Raises:
        ConfigError: `guard-split` names one, and there is no server model.
        DataError: the split that `guard-split` names cannot be read.
    """
    split = config.guard_split
    if split == NO_GUARD:
        return Guard(config)
    if not split and not config.needs_text:
        on_word(
            f"objective {config.objective} has no guard against collapse: "
            "set guard-split to a labelled split on the server"
        )
        return Guard(config)
    if split and held is None:
        raise ConfigError(
            f"guard-split is {split!r} and server-model is off, but the guard looks at the server's model: leave one "
            "of the two out"
        )
    if split and split == config.eval_split:
        on_word(f"guard-split and eval-split are both {split!r}: what is reported has chosen the rounds")
    if held is None:
        on_word("no guard: server-model is off; turn it on, and name a split as guard-split")
        return Guard(config)
    if not config.needs_text:
        return CollapseGuard(config, held, on_word, on_stage)
    if split:
        return HeldOutGuard(config, held, split, on_word, on_stage, skip_bad=config.skip_bad)
    return _default_guard(config, held, on_word, on_stage)


def _default_guard(config: RunConfig, held: GlobalModel, on_word: Callable[[str], None], on_stage: OnStage) -> Guard:
    """On the speech that there is; what is wrong with it stops no run that did not ask for a guard."""
    evaluated = config.eval_split if config.evaluate_on == "server" else ""
    there = splits_of(config.data, ask_hub=bool(evaluated))
    used = (config.train_split, config.eval_split)
    split = next((name for name in _DEVELOPMENT if name in there and name not in used), evaluated)
    if not split:
        on_word(f"no guard: {_why_none(config)}; name a split as guard-split")
        return Guard(config)
    try:
        guard = HeldOutGuard(config, held, split, on_word, on_stage, skip_bad=True)
    except DataError as error:
        on_word(f"no guard: split {split!r} cannot be used: {error.problems[0]}")
        return Guard(config)
    if split == config.eval_split:
        on_word(
            f"the guard looks at eval-split {split!r}: what is reported has chosen the rounds (name another split as "
            "guard-split, or 'none')"
        )
    return guard


def _why_none(config: RunConfig) -> str:
    """Why there is no split to look at."""
    unset = "eval-split is not set" if config.evaluate_on == "server" else "evaluate-on is 'clients'"
    if not config.data:
        return f"the server has no data, and {unset}"
    if not Path(config.data).expanduser().exists():
        return f"which splits {config.data!r} has is not asked of the hub, and {unset}"
    return f"{config.data!r} has no split called {', '.join(_DEVELOPMENT)} that is free for it, and {unset}"
