"""A base model and its lattice state, as a device and a server load them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zo_common.config.run import RunConfig
from zo_common.lattice.fingerprint import fingerprint
from zo_common.lattice.state import LatticeState
from zo_common.ledger.ledger import TensorEntry, describe_tensors
from zo_common.models.compute import choose_device, fits_memory
from zo_common.models.frozen.hold import hold
from zo_common.models.frozen.load import load_held
from zo_common.models.load import load_model
from zo_common.speech.model_kinds import trainable


class Replica:
    """One copy of a run's weights: the base model until rounds of its ledger move them.

    Args:
        config: which model and tensors to train, and on which device.

    Attributes:
        model, processor, speech: the base model, its processor, and both as a speech model.
        device: where the model computes.
        held_in: precision of the frozen weights.
        fingerprint: fingerprint of the base model, 64 hex digits.
        state: the trained tensors on their grids.
        base_checksum: checksum of the state before any round.

    Raises:
        ModelNotFound, UnsupportedModel, PatternError, EpsilonTooSmall, ConfigError: before anything is trained.
    """

    model: nn.Module
    processor: Any
    held_in: str

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self._load_base()

    def _load_base(self) -> None:
        config, precision, base = self.config, self._frozen_precision(), ""
        with fits_memory(f"model {config.model!r}", torch.device("cpu")):
            if precision != "float32":
                loaded, base, self._originals = load_held(
                    config.model, language=config.language, trained=config.trained_tensors, precision=precision
                )
            else:
                loaded = load_model(config.model, language=config.language)
        self.processor = loaded.processor
        self.speech = trainable(loaded, config)
        place = self._place()
        with fits_memory(f"model {config.model!r}", place):
            self._hold(loaded.model.to(place), base, precision)

    def _hold(self, model: nn.Module, base: str = "", held_in: str = "float32") -> None:
        """Initialise the replica from a base model, and its fingerprint if that is known."""
        config, self.model, self.held_in = self.config, model, held_in
        self.device = next(self.model.parameters()).device
        self.fingerprint = base or fingerprint(self.model)
        self.state = LatticeState(self.model, config.trained_tensors, config.scale)
        if config.epsilon != "auto":
            self.state.epsilon_units(config.epsilon)
        self.base_checksum = self.state.checksum()

    def _frozen_precision(self) -> str:
        """Return the precision to load frozen weights in; without a loss check, auto is float32."""
        wanted = self.config.frozen_precision
        return "float32" if wanted == "auto" else wanted

    def hold_in(self, precision: str) -> None:
        """Put the frozen weights into another precision; "float32" restores the base's.

        Raises:
            ModelNotFound: the model's files are gone.
        """
        if precision == self.held_in:
            return
        hold(self.model, list(self.state.exponents), precision, self._originals)
        self.held_in = precision

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
