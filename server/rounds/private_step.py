"""The measured step size of a run with differential privacy: the server measures curvature on its own speech.

Devices send no curvature: it would be sent without noise and so reveal what the scalars' noise hides. The server
measures it on the transcribed speech of `guard-split`, at its own model, with the round's directions. It clips as
devices do, and knows the noise they add. No device's data is used, so the measurement costs no privacy.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from server.guards.choice import NO_GUARD
from server.guards.guard import Progress
from server.rounds.pooled_curvature import Pooled, pooled
from server.rounds.step_size import FixedStep, Measured, MeasuredStep, StepSize
from server.run.model import GlobalModel
from zo_common.config.run import RunConfig
from zo_common.directions.seeds import fold_in, shared_seed
from zo_common.errors import ConfigError, LatticeOverflow, NonFiniteLoss
from zo_common.estimator.curvature import MOST_NOISE_SHARE, Curvature, RelativeCurvature
from zo_common.estimator.step import LossFn, StepResult, clip_factors, zo_step
from zo_common.speech.loss_settings import LossSettings, unchecked
from zo_common.speech.recordings import read_speech
from zo_common.speech.splits import server_split

logger = logging.getLogger(__name__)
_SPEECH_STREAM = 1 << 44  # far from any step number
_LEAST_CLIP = 1e-12
_FAR = 2.0  # times the usual norm, above which a clip norm is reported
_LEAST_BATCH = 16
"""Utterances of the server's own measurement, whatever the devices' batch: of one, noise is unknown, and of few the
signal. The server's forward passes cost no privacy."""


class ServerMeasuredStep(MeasuredStep):
    """As `MeasuredStep`, with q forward passes on the server each round.

    The guard's checks tell the signal as without privacy: they are of the server's speech, too.

    Args:
        config: settings with the noise multiplier set.

    Raises:
        ConfigError: the server has no model, or no speech.
        DataError: the split cannot be read.
    """

    def __init__(
        self,
        config: RunConfig,
        global_model: GlobalModel | None,
        progress: Callable[[], list[Progress] | None] = lambda: None,
    ) -> None:
        split = server_split(config)
        if global_model is None or split in ("", NO_GUARD):
            raise ConfigError(
                "learning-rate is 'auto' with privacy, which needs held-out speech with transcripts on the server, and "
                "its model: give data a split dev or set guard-split, and leave server-model on, or set learning-rate "
                "to a number"
            )
        super().__init__(config, progress)
        self._global_model = global_model
        self._data = read_speech(
            config.data,
            global_model.speech.reader(**config.reading),
            split=split,
            text_column=config.text_column,
            skip_bad=config.skip_bad,
        )
        choice = unchecked(config)  # as devices do under privacy
        settings = LossSettings.of(config, choice.tail_tokens)
        self._losses = global_model.speech.losses(global_model.state.exponents, settings, choice.precision)
        self._warned = False
        self._kept, self._share_error = 1.0, 0.0  # of the last measurement, as in `Pooled`
        self._estimator = replace(config.estimator_config, epsilon=choice.epsilon)

    def measure(self, server_round: int, replies: Measured) -> list[RelativeCurvature]:
        """Return the curvature that devices would send at the server's weights, with the noise that is added."""
        if not replies.accepted:
            return []
        config, seed = self._config, shared_seed(self._config.run_seed, server_round)
        chosen = self._data.draw(
            max(config.batch_size, _LEAST_BATCH), np.random.default_rng(fold_in(seed, _SPEECH_STREAM))
        )
        loss = self._losses(self._data.batch(chosen))
        weigh = self._clip_example if config.privacy == "example" else self._clip_median
        try:
            step = self._measured_step(loss, seed, weigh)
        except (NonFiniteLoss, LatticeOverflow) as error:  # like a device that cannot answer; the guard checks next
            logger.warning(f"round {server_round}: the step is not measured: {error}")
            return []
        found = self._as_devices_send(step, replies.accepted)
        return [] if found is None else [found]

    def _measured_step(
        self, loss: LossFn, seed: int, weigh: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    ) -> StepResult:
        state, estimator = self._global_model.state, self._estimator
        return zo_step(state, loss, seed, 0, estimator, 0.0, weigh=weigh, curvature=True)

    def pool(self, found: list[RelativeCurvature]) -> Pooled:
        """As `MeasuredStep.pool`, with the error of a share that few directions tell."""
        return replace(pooled(found), square=0.0, share_error=self._share_error, kept=self._kept)

    def explored_signal(self, last: Pooled) -> float:
        """As `MeasuredStep.explored_signal`, less the added noise."""
        return (1 - MOST_NOISE_SHARE) * last.kept

    def _as_devices_send(self, step: StepResult, devices: int) -> RelativeCurvature | None:
        """Return the curvature after clipping and noise; direction-independent noise adds only to m.

        For a reply that clipping scales by f, s, m and R scale by f², while the loss falls by f: α is 1/f as large,
        which is the same as scaling t and R by f, and the loss falls as it would with m / f and unscaled scalars.
        """
        assert step.curvature is not None
        config = self._config
        own = float(np.square(step.projected_grads.astype(np.float64)).mean())
        curvature, square = _of_batch(step.curvature, own, step.examples / config.batch_size)
        found = curvature.relative(square)
        if found is None:
            return None
        self._warn_of_clip_norm(curvature, square)
        shortened, added = 1.0, (config.noise_multiplier * config.clip_norm) ** 2
        if config.privacy == "example":
            added /= config.batch_size**2
        else:
            length = math.sqrt(square * config.num_queries * config.local_steps)
            shortened = max(_LEAST_CLIP, min(1.0, config.clip_norm / length))
            plain_shares = config.noise_by == "devices" and not config.secure_aggregation
            added /= (config.min_replies if plain_shares else devices) * shortened**2
        self._kept = kept = square / (square + added)
        self._share_error = kept * own / square * math.sqrt(2 / max(1, config.num_queries - 1))
        return RelativeCurvature(
            found.per_direction * shortened,
            found.along_signal * kept * shortened,
            found.along_noise * kept * shortened,
            1 - (1 - found.noise_share) * kept,
            shortened * (square + added),
        )

    def _warn_of_clip_norm(self, curvature: Curvature, square: float) -> None:
        """Report a clip norm with which the noise is far larger than it need be, once."""
        config = self._config
        one = max(0.0, square - curvature.noise) + curvature.noise * config.batch_size
        scalars = config.num_queries * (config.local_steps if config.privacy == "device" else 1)
        usual = math.sqrt(scalars * (one if config.privacy == "example" else square))
        if not self._warned and config.clip_norm > _FAR * usual:
            logger.warning(
                f"clip-norm is {config.clip_norm:g}, {config.clip_norm / usual:.1f} times the usual norm on the "
                f"server's speech, and so is the noise: {usual:.2g} would do in another run"
            )
        self._warned = True

    def _clip_example(self, per_example: NDArray[np.float64]) -> NDArray[np.float64]:
        norms = np.sqrt(np.square(per_example).sum(axis=0))
        return np.asarray(self._config.clip_norm / np.maximum(norms, self._config.clip_norm))

    def _clip_median(self, per_example: NDArray[np.float64]) -> NDArray[np.float64]:
        return clip_factors(per_example, self._config.clip_utterances)


def _of_batch(curvature: Curvature, square: float, times: float) -> tuple[Curvature, float]:
    """Return curvature and mean square of scalars for batches with 1/`times` as many utterances."""
    noise, along = curvature.noise * times, curvature.along_noise * times
    return replace(curvature, noise=noise, along_noise=along), square + noise - curvature.noise


def step_size(
    config: RunConfig,
    global_model: GlobalModel | None,
    progress: Callable[[], list[Progress] | None] = lambda: None,
) -> StepSize:
    """Return the step size that `learning-rate` sets.

    Args:
        progress: of the run's guard.

    Raises:
        ConfigError, DataError: it cannot be measured.
    """
    if config.learning_rate != "auto":
        return FixedStep(config)
    if config.privacy == "none":
        return MeasuredStep(config, progress)
    return ServerMeasuredStep(config, global_model, progress)
