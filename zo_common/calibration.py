"""One device's share of a calibration: groups of tensors, measured one by one, by a device or by the server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from zo_common.config.run import RunConfig
from zo_common.directions.seeds import fold_in
from zo_common.errors import ConfigError, NonFiniteLoss
from zo_common.estimator.calibration import (
    LEAST_DIRECTIONS,
    GroupMeasure,
    by_importance,
    measure_group,
    passes_of_groups,
    shared_out,
)
from zo_common.estimator.step import LossFn, clip_factors
from zo_common.lattice.trained import measured_groups
from zo_common.speech.loss_settings import LossSettings, unchecked
from zo_common.speech.recordings import Recordings
from zo_common.speech.speech_model import SpeechModel
from zo_common.wire.calibration import CalibrationAsk

_BATCH_STREAM = 1 << 45  # far from any step number


def share_of(model: nn.Module, ask: CalibrationAsk) -> dict[str, tuple[str, ...]]:
    """Return the groups that a device measures, with the names of their tensors."""
    groups = measured_groups(model)
    _, each = passes_of_groups(ask.passes)
    return {group: groups[group] for group in shared_out(by_importance(groups), ask.devices, each)[ask.place]}


def measure_share(
    speech: SpeechModel, config: RunConfig, data: Recordings, ask: CalibrationAsk
) -> dict[str, GroupMeasure]:
    """Measure a share of the groups; a group whose loss is not finite is left out.

    Raises:
        ConfigError: too few passes, or an objective without curvature.
    """
    passes, _ = passes_of_groups(ask.passes)
    if passes < LEAST_DIRECTIONS:
        raise ConfigError(
            f"calibration got {ask.passes} passes for a device, expected at least {LEAST_DIRECTIONS}: raise "
            "num-queries, or name the trained-tensors"
        )
    choice, found = unchecked(config), {}
    settings, model = LossSettings.of(config, choice.tail_tokens), speech.model
    device = next(model.parameters()).device
    for place, (group, tensors) in enumerate(share_of(model, ask).items()):
        losses = speech.losses(tensors, settings, choice.precision)
        seed = fold_in(ask.seed, ask.client_id, place)
        draws = np.random.default_rng(fold_in(seed, _BATCH_STREAM))
        loss = partial(_loss, losses, data, ask.batch_size, draws, device)
        weigh = partial(clip_factors, multiple=config.clip_utterances)
        try:
            found[group] = measure_group(model, tensors, loss, seed, passes, weigh)
        except NonFiniteLoss:
            continue
    return found


def _loss(
    losses: Callable[[Any], LossFn], data: Recordings, size: int, draws: np.random.Generator, device: Any
) -> LossFn:
    chosen: Sequence[int] = data.draw(size, draws)
    return losses(data.batch(chosen).to(device))
