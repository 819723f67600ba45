"""Settings of a loss: those of a run with what is chosen for a model, the same on devices and on the server."""

from __future__ import annotations

from dataclasses import replace

from zo_common.config.run import RunConfig
from zo_common.models.loss_check import FIRST_EPSILON, LossChoice, Setting
from zo_common.speech.family import Family

UNCHECKED_TAIL = 64


def unchecked(config: RunConfig) -> LossChoice:
    """The settings as they are; for "auto" what is right for most models, in float32.

    For runs with `loss-check=false`, and under privacy: a choice made by looking at single recordings is a release of
    them that no noise covers.
    """
    return LossChoice(
        UNCHECKED_TAIL if isinstance(config.tail_tokens, str) else config.tail_tokens,
        "float32" if config.precision == "auto" else config.precision,
        FIRST_EPSILON if isinstance(config.epsilon, str) else config.epsilon,
    )


def with_tail(config: RunConfig, choice: Setting | LossChoice, family: Family) -> RunConfig:
    """The settings with the chosen tail as a number; for the whole window, one token for each of its positions."""
    return replace(config, tail_tokens=family.window if choice.tail_tokens is None else choice.tail_tokens)
