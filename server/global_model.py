"""The server's view of the model: weights rebuilt from scalars, or, without a model, what the devices agree on."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from torch import nn

from server.roster import Member
from zo_common.config import RunConfig
from zo_common.errors import ConfigError, WrongBaseModel
from zo_common.fingerprint import fingerprint
from zo_common.ledger import LedgerHeader, TensorEntry, describe_tensors
from zo_common.models import load_whisper
from zo_common.state import LatticeState


class GlobalModel:
    """Base model, processor and lattice state of a server that holds the model."""

    def __init__(self, config: RunConfig) -> None:
        self.model: nn.Module
        self.processor: Any
        self.model, self.processor = load_whisper(config.model)
        self.fingerprint = fingerprint(self.model)
        self.state = LatticeState(self.model, config.trained_tensors, config.scale)
        self.state.epsilon_units(config.epsilon)
        self.base_checksum = self.state.checksum()
        self.tensors = describe_tensors(self.state)


def open_header(config: RunConfig, held: GlobalModel | None, members: Iterable[Member]) -> LedgerHeader:
    """The header of a new run, from the server's model or, without one, from what all devices say of theirs.

    Raises:
        WrongBaseModel: a device holds another base model or other trained tensors; names the devices.
    """
    members = list(members)
    # devices that say the same share one description (see the roster): a thousand of them are read once
    different = {id(m.description): _view(m.description) for m in members}
    views = {m.client_id: different[id(m.description)] for m in members}
    if held is not None:
        reference = (held.fingerprint, held.base_checksum, held.tensors)
    else:
        reference = next(iter(views.values()))
    others = [str(client) for client, view in views.items() if view != reference]
    if others:
        raise WrongBaseModel(
            f"devices {', '.join(others[:8])} hold another base model or other trained tensors than "
            f"{'the server' if held else 'the first device'} ({reference[0][:16]}…): give all the same model"
        )
    return LedgerHeader(
        fingerprint=reference[0],
        base_checksum=reference[1],
        model=config.model,
        pattern=config.trained_tensors,
        scale=config.scale,
        epsilon=config.epsilon,
        estimator=config.estimator,
        run_seed=config.run_seed,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        tensors=reference[2],
        settings=_settings(config),
    )


def _settings(config: RunConfig) -> dict[str, Any]:
    kept = ("learning-rate", "lr-schedule", "num-queries", "local-steps", "batch-size", "directions", "weighting")
    return {key: value for key, value in config.to_mapping().items() if key in kept}


def _view(description: dict[str, Any]) -> tuple[str, int, tuple[TensorEntry, ...]]:
    try:
        tensors = tuple(
            TensorEntry(str(name), tuple(map(int, shape)), int(grid), int(scale))
            for name, shape, grid, scale in description["tensors"]
        )
        return str(description["fingerprint"]), int(description["base_checksum"]), tensors
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"a device described its base model with malformed fields ({error})") from None


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
        ("epsilon", header.epsilon, config.epsilon),
        ("estimator", header.estimator, config.estimator),
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
