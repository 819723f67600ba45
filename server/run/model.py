"""The server's view of the model: weights rebuilt from scalars, or, without a model, what the devices agree on."""

from __future__ import annotations

import time
from typing import Any

from torch import nn

from zo_common.config.run import RunConfig
from zo_common.errors import ConfigError, WrongBaseModel
from zo_common.lattice.fingerprint import fingerprint
from zo_common.lattice.state import LatticeState
from zo_common.ledger.ledger import LedgerHeader, TensorEntry, describe_tensors
from zo_common.ledger.snapshot import encode_snapshot
from zo_common.models.load import load_model
from zo_common.speech.family import family_of

PRIVACY_KEYS = ("privacy", "target-epsilon", "target-delta", "clip-norm", "noise-multiplier", "noise-by")
View = tuple[str, int, tuple[TensorEntry, ...]]  # fingerprint, base checksum, trained tensors


class GlobalModel:
    """Base model, processor, family and lattice state of a server that holds the model.

    Raises:
        ModelNotFound, UnsupportedModel, PatternError, EpsilonTooSmall, ConfigError: as a device's engine would.
    """

    def __init__(self, config: RunConfig) -> None:
        self.model: nn.Module
        self.processor: Any
        loaded = load_model(config.model)
        self.model, self.processor = loaded.model, loaded.processor
        self.family = family_of(loaded, config)
        self.fingerprint = fingerprint(self.model)
        self.state = LatticeState(self.model, config.trained_tensors, config.scale)
        if config.epsilon != "auto":
            self.state.epsilon_units(config.epsilon)
        self.base_checksum = self.state.checksum()
        self.tensors = describe_tensors(self.state)
        self._config = config

    def snapshot(self) -> bytes:
        """The present weights' difference to the base model, which is loaded again for the comparison.

        Raises:
            WrongBaseModel, ModelNotFound: it was changed or removed since the run began.
        """
        model = load_model(self._config.model).model
        header = {t.name: (t.grid_exponent, t.scale_exponent) for t in self.tensors}
        base = LatticeState(model, ",".join(header), self._config.scale, exponents=header)
        if base.checksum() != self.base_checksum:
            raise WrongBaseModel(f"{self._config.model} is not the base model any more that this run began with")
        return encode_snapshot(base, self.state)


def open_header(config: RunConfig, reference: View) -> LedgerHeader:
    """The header of a new run."""
    return LedgerHeader(
        fingerprint=reference[0],
        base_checksum=reference[1],
        model=config.model,
        pattern=config.trained_tensors,
        scale=config.scale,
        epsilon=config.estimator_config.epsilon,
        estimator=config.estimator,
        run_seed=config.run_seed,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        tensors=reference[2],
        settings=_settings(config),
    )


def _settings(config: RunConfig) -> dict[str, Any]:
    kept: tuple[str, ...] = (
        "objective",
        "learning-rate",
        "lr-schedule",
        "num-queries",
        "local-steps",
        "batch-size",
        "directions",
        "weighting",
        "aggregation",
        "byzantine-share",
        "norm-bound",
    )
    if config.privacy_settings is not None:
        kept = (*kept, *PRIVACY_KEYS)
    return {key: value for key, value in config.to_mapping().items() if key in kept}


def _privacy_then_and_now(header: LedgerHeader, config: RunConfig) -> list[tuple[str, Any, Any]]:
    """What a run promised its devices, and what it would now."""
    then = header.settings.get("privacy", "none")
    if then == config.privacy == "none":
        return []
    now = config.to_mapping()
    return [("privacy", then, config.privacy), *((k, header.settings.get(k), now[k]) for k in PRIVACY_KEYS[1:])]


def check_resumable(header: LedgerHeader, config: RunConfig, found: LedgerHeader) -> None:
    """Refuse to continue a ledger with other settings than it was made with.

    Args:
        found: the header a new run would get now, from the server's model or the devices'.

    Raises:
        ConfigError, WrongBaseModel: names the setting, its value in the ledger and the one asked for.
    """
    for what, then, now in (
        ("run-seed", header.run_seed, config.run_seed),
        ("trained-tensors", header.pattern, config.trained_tensors),
        ("scale", header.scale, config.scale),
        ("epsilon", header.epsilon, config.estimator_config.epsilon),
        ("estimator", header.estimator, config.estimator),
        *_privacy_then_and_now(header, config),
    ):
        if then != now:
            raise ConfigError(
                f"the ledger was made with {what} {then!r}, this run asks for {now!r}: use the same to resume"
            )
    if found.fingerprint != header.fingerprint:
        raise WrongBaseModel(
            f"the ledger was made on base model {header.fingerprint[:16]}… ({header.model}), this run's model is "
            f"{found.fingerprint[:16]}…: use the same base to resume"
        )
