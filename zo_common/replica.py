"""A base model and its lattice state, as a device and a server load them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zo_common.config.run import RunConfig
from zo_common.lattice.fingerprint import fingerprint
from zo_common.lattice.state import LatticeState
from zo_common.ledger.ledger import TensorEntry, describe_tensors
from zo_common.models.compute import choose_device
from zo_common.models.load import load_model
from zo_common.speech.model_kinds import trainable


class Replica:
    """One copy of a run's weights: the base model until rounds of its ledger move them.

    Args:
        config: which model and tensors to train, and on which device.

    Attributes:
        model, processor, speech: the base model, its processor, and both as a speech model.
        device: where the model computes.
        fingerprint: fingerprint of the base model, 64 hex digits.
        state: the trained tensors on their grids.
        base_checksum: checksum of the state before any round.

    Raises:
        ModelNotFound, UnsupportedModel, PatternError, EpsilonTooSmall, ConfigError: before anything is trained.
    """

    model: nn.Module
    processor: Any

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self._load_base()

    def _load_base(self) -> None:
        loaded = load_model(self.config.model, language=self.config.language)
        self.processor = loaded.processor
        self.speech = trainable(loaded, self.config)
        self._hold(loaded.model.to(self._place()))

    def _hold(self, model: nn.Module) -> None:
        """Initialise the replica from a base model."""
        config, self.model = self.config, model
        self.device = next(self.model.parameters()).device
        self.fingerprint = fingerprint(self.model)
        self.state = LatticeState(self.model, config.trained_tensors, config.scale)
        if config.epsilon != "auto":
            self.state.epsilon_units(config.epsilon)
        self.base_checksum = self.state.checksum()

    def _place(self) -> torch.device:
        return choose_device(self.config.device)

    @property
    def base_id(self) -> int:
        """First 8 bytes of the base model's fingerprint, as plans carry it."""
        return int(self.fingerprint[:16], 16)

    @property
    def tensors(self) -> tuple[TensorEntry, ...]:
        """The trained tensors, as a ledger's header lists them."""
        return describe_tensors(self.state)
