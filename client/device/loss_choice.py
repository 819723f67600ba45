"""The computation of a device's loss, chosen once for a data set by `models.loss_check`, in memory and on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import torch

from zo_common.binary.durable import write_durably
from zo_common.config.run import RunConfig
from zo_common.config.sections import FrozenPrecision, Precision
from zo_common.errors import ConfigError, LossCheckFailed
from zo_common.estimator.step import LossFn, joined
from zo_common.lattice.state import LatticeState
from zo_common.models.compute import resolve_precision
from zo_common.models.frozen.hold import exact_weights
from zo_common.models.loss_check import TAILS, Asked, LossChoice, check_loss, utterances_for
from zo_common.models.loss_probes import REFERENCE, Setting
from zo_common.speech.loss_settings import LossSettings, unchecked
from zo_common.speech.recordings import Recordings, spread
from zo_common.speech.speech_model import SpeechModel
from zo_common.wire.plan import Plan

_VERSION = 2  # of the check: results of an older version are not used


class UtteranceTrials:
    """Losses of some of a device's utterances, each in its own window, as `loss_probes.Trials`."""

    def __init__(
        self, speech: SpeechModel, data: Recordings, trained: list[str], config: RunConfig, device: torch.device
    ) -> None:
        self._speech, self._data, self._trained = speech, data, trained
        self._config, self._device = config, device
        self.tails = tuple(tail for tail in TAILS if tail < speech.window)

    def loss(self, setting: Setting) -> LossFn:
        """As `Trials.loss`."""
        if setting.held:
            return self._loss(setting)
        with exact_weights(self._speech.model):
            loss = self._loss(setting)

        def exact() -> torch.Tensor:
            with exact_weights(self._speech.model):
                return loss()

        return exact

    def _loss(self, setting: Setting) -> LossFn:
        if setting == REFERENCE:
            make = self._speech.losses(None, LossSettings.of(self._config, 0), "float32")
            batch: Callable[[list[int]], Any] = self._data.whole_batch
        else:
            settings = LossSettings.of(self._config, setting.tail_tokens)
            make = self._speech.losses(self._trained, settings, setting.precision)
            batch = self._data.batch
        return joined([make(batch([index]).to(self._device)) for index in range(len(self._data))])


class LossChoices:
    """The choices of one engine for all data sets of its process.

    With a `feature-cache`, a choice is also stored there, under a digest of all that it depends on: virtual devices
    move from process to process, and the check runs once.

    Args:
        base: fingerprint of the base model.
        at_base: a context in which the weights are the base model's: the check uses these, so that its result does not
            depend on the device's round, nor on whether it came there by records or a snapshot.
        frozen: the precision of frozen weights in that context.
    """

    def __init__(
        self,
        config: RunConfig,
        speech: SpeechModel,
        state: LatticeState,
        device: torch.device,
        base: str,
        at_base: Callable[[], AbstractContextManager[object]],
        frozen: str = "float32",
    ) -> None:
        self._config, self._speech, self._state, self._device = config, speech, state, device
        self._base, self._at_base, self._frozen = base, at_base, frozen
        self._known: dict[str, LossChoice | str] = {}

    def of(self, plan: Plan, data: Recordings) -> tuple[LossChoice, bool]:
        """Return the choice for a plan, and whether its device has not reported it yet.

        Raises:
            LossCheckFailed: a fixed setting does not fit.
            ConfigError: `feature-cache` cannot be written.
        NonFiniteLoss, LatticeOverflow, EpsilonTooSmall: as a step would.
        """
        if plan.privacy is not None or not self._config.loss_check:
            return unchecked(self._config), False
        few = spread(data, utterances_for(plan.estimator.forwards * plan.local_steps * plan.batch_size))
        key, new = self._key(plan, few), False
        if key not in self._known:
            stored = self._read(key)
            self._known[key] = stored or self._check(key, plan, few)
            new = stored is None or plan.server_round == 1
        found = self._known[key]
        if isinstance(found, str):
            raise LossCheckFailed(found)
        return found, new

    def _check(self, key: str, plan: Plan, few: Recordings) -> LossChoice | str:
        config = self._config
        asked = Asked(
            None if isinstance(config.tail_tokens, str) or not self._speech.window else config.tail_tokens,
            None if config.precision == "auto" else config.precision,
            plan.estimator.epsilon or None,
            resolve_precision("auto", self._device),
            self._frozen,
            config.frozen_precision != "auto",
        )
        trials = UtteranceTrials(self._speech, few, list(self._state.exponents), config, self._device)
        try:
            with self._at_base():
                choice = check_loss(self._state, trials, asked)
        except LossCheckFailed as error:
            return str(error)
        self._write(key, choice)
        return choice

    def _key(self, plan: Plan, few: Recordings) -> str:
        """Return a digest of base model, trained tensors, settings, machine and utterances."""
        c = self._config
        settings = (
            *(c.tail_tokens, c.precision, plan.estimator.epsilon, c.language, c.objective, c.temperature),
            *(c.entropy_weight, c.min_confidence),
            *((self._frozen, c.frozen_precision) if self._frozen != "float32" else ()),
        )
        machine = (torch.__version__, self._device.type, resolve_precision("auto", self._device))
        digest = hashlib.sha256(repr((_VERSION, self._base, self._state.exponents, settings, machine)).encode())
        for example in few.examples:
            digest.update(repr((tuple(example.features.shape), example.labels)).encode())
            digest.update(example.features.numpy().tobytes())
        return digest.hexdigest()

    def _path(self, key: str) -> Path | None:
        return Path(self._config.feature_cache) / f"loss-{key}.json" if self._config.feature_cache else None

    def _read(self, key: str) -> LossChoice | None:
        """Return the choice that another process or an earlier run stored; None if there is no intact one."""
        path = self._path(key)
        if path is None:
            return None
        try:
            return _checked(json.loads(path.read_text()))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def _write(self, key: str, choice: LossChoice) -> None:
        path = self._path(key)
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(path, json.dumps(asdict(choice)).encode())
        except OSError as error:
            raise ConfigError(
                f"the loss check's result cannot be written to {str(path.parent)!r} ({error.strerror}): name another "
                "feature-cache"
            ) from None


def _checked(raw: dict[str, Any]) -> LossChoice:
    """Return the stored choice; raise ValueError, TypeError or KeyError for what no check has written."""
    tail, reasons = raw["tail_tokens"], tuple(raw["reasons"])
    if not (tail is None or (type(tail) is int and tail >= 0)) or not all(
        isinstance(reason, str) for reason in reasons
    ):
        raise ValueError("not a choice")
    frozen = raw.get("frozen", "float32")
    if raw["precision"] not in get_args(Precision) or not 0 < float(raw["epsilon"]) < 1:
        raise ValueError("not a choice")
    if frozen not in get_args(FrozenPrecision):
        raise ValueError("not a choice")
    return LossChoice(tail, raw["precision"], float(raw["epsilon"]), reasons, frozen)
