"""The losses that a step of a CTC model perturbs: supervised, and without any text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zo_common.errors import ConfigError
from zo_common.estimator.curvature import OutputTrace
from zo_common.models.compute import autocast
from zo_common.models.ctc.forward import ctc_logits, prepare_waves
from zo_common.models.ctc.objectives import (
    alignable,
    confidence_weights,
    ctc_losses,
    frame_mask,
    non_blank_mask,
    suta_losses,
)
from zo_common.models.objectives import IGNORE


@dataclass(frozen=True)
class CTCBatch:
    """Inputs of a CTC model.

    Attributes:
        values, lengths: as `prepare_waves` makes them.
        labels: int64 (B, L): characters, padded with −100; None without transcripts.
    """

    values: torch.Tensor
    lengths: torch.Tensor
    labels: torch.Tensor | None = None

    def to(self, device: torch.device) -> CTCBatch:
        """Return the same batch on a device."""
        labels = None if self.labels is None else self.labels.to(device)
        return CTCBatch(self.values.to(device), self.lengths.to(device), labels)


def ctc_batch(
    extractor: Any, waves: Sequence[NDArray[np.float32]], labels: Sequence[Sequence[int]] | None = None
) -> CTCBatch:
    """Return a batch of mono waveforms at the extractor's rate, with the labels of each from `ctc_text.ctc_labels`."""
    values, lengths = prepare_waves(extractor, waves)
    if labels is None:
        return CTCBatch(values, lengths)
    padded = torch.full((len(waves), max(map(len, labels), default=0)), IGNORE, dtype=torch.int64)
    for row, characters in zip(padded, labels, strict=True):
        row[: len(characters)] = torch.tensor(characters, dtype=torch.int64)
    return CTCBatch(values, lengths, padded)


class CTCLoss:
    """Supervised per-example losses of one batch, in nats a character, as `estimator.LossFn`.

    Attributes:
        trace: where it is set, every call tells it the logits of the frames; the Fisher matrix of frame posteriors is
            an upper bound of CTC's own, which lacks what the alignment leaves open.

    Args:
        precision: "float32", "bfloat16" or "float16", for matrix products; losses are float32.
    """

    def __init__(self, model: Any, batch: CTCBatch, precision: str = "float32") -> None:
        if batch.labels is None:
            raise ConfigError("the batch has no labels, CTC training needs them: use AdaptationLoss without a text")
        wrong = (batch.labels >= model.config.vocab_size) | (batch.labels == blank_of(model))
        if bool(wrong.any()):
            raise ConfigError(
                f"label {int(batch.labels[wrong][0])} is the blank or beyond the model's {model.config.vocab_size} "
                "classes: make labels with the model's own tokenizer"
            )
        self.trace: OutputTrace | None = None
        self._model, self._batch, self._precision = model, batch, precision
        self._labels = batch.labels
        self._label_lengths = (batch.labels != IGNORE).sum(dim=1)

    def __call__(self) -> torch.Tensor:
        """Return losses (B,), float32."""
        with autocast(self._precision, self._batch.values.device):
            logits, frames = ctc_logits(self._model, self._batch.values, self._batch.lengths)
        if self.trace is not None:
            self._tell(self.trace, logits.float(), frames)
        return ctc_losses(logits, frames, self._labels, self._label_lengths, blank_of(self._model))

    def _tell(self, trace: OutputTrace, logits: torch.Tensor, frames: torch.Tensor) -> None:
        """Report the frames' logits; a frame counts one nth of an utterance of n characters, as in its loss."""
        counted = alignable(frames, self._labels, self._label_lengths)[:, None] & frame_mask(frames, logits.shape[1])
        units = torch.where(self._label_lengths > 0, self._label_lengths, frames.clamp(min=1))
        rows = counted.nonzero()[:, 0]
        kept = logits[counted]
        trace.record(kept, kept.logsumexp(dim=1), rows, 1 / (units[rows] * len(units)))


@dataclass(frozen=True)
class SutaSettings:
    """Settings of `AdaptationLoss`; the defaults are ZO-ASR's.

    Attributes:
        temperature: divides the logits.
        entropy_weight: of the entropy of the non-blank frames; the rest is the weight of class confusion.
        reweight: whether class confusion weights frames by confidence.
        confusion_of_blanks: whether class confusion uses all frames, as SUTA does, or only the non-blank ones.
    """

    temperature: float = 2.5
    entropy_weight: float = 0.3
    reweight: bool = True
    confusion_of_blanks: bool = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ConfigError(f"temperature is {self.temperature}, expected a positive number such as 2.5")
        if not 0 <= self.entropy_weight <= 1:
            raise ConfigError(f"entropy-weight is {self.entropy_weight}, expected 0 … 1")


class AdaptationLoss:
    """Entropy and class confusion of one batch, per example, as `estimator.LossFn`: needs no text.

    1. The first call selects the non-blank frames and their weights, under the present model weights.
    2. Every call uses the same frames and frame weights, so that the two sides of a query differ only in the model's
       outputs, not in the frames.

    Create one object per step, so that the frames follow the model as it adapts. The first call of a two-sided step is
    already perturbed; `freeze` selects frames under the unperturbed weights, for one more forward pass. A one-sided
    step starts with the unperturbed pass anyway.
    """

    def __init__(
        self, model: Any, batch: CTCBatch, settings: SutaSettings | None = None, precision: str = "float32"
    ) -> None:
        self._model, self._batch, self._precision = model, batch, precision
        self._settings = settings or SutaSettings()
        self._frozen: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def mask(self) -> torch.Tensor | None:
        """The non-blank frames, bool (B, T), once they are selected."""
        return self._frozen[0] if self._frozen else None

    @torch.no_grad()
    def freeze(self) -> AdaptationLoss:
        """Select the frames under the present weights; returns self."""
        self._frozen = self._decide(*self._logits())
        return self

    def __call__(self) -> torch.Tensor:
        """Return losses (B,), float32."""
        logits, frames = self._logits()
        if self._frozen is None:
            self._frozen = self._decide(logits, frames)
        mask, weights = self._frozen
        s = self._settings
        return suta_losses(logits, mask, s.temperature, s.entropy_weight, weights=weights)

    def _logits(self) -> tuple[torch.Tensor, torch.Tensor]:
        with autocast(self._precision, self._batch.values.device):
            logits, frames = ctc_logits(self._model, self._batch.values, self._batch.lengths)
        return logits.float(), frames

    def _decide(self, logits: torch.Tensor, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        s = self._settings
        mask = non_blank_mask(logits, frames, blank_of(self._model))
        looked_at = frame_mask(frames, logits.shape[1]) if s.confusion_of_blanks else mask
        return mask, confidence_weights(logits, looked_at, s.temperature).detach() if s.reweight else looked_at


def blank_of(model: Any) -> int:
    """Return the id of the blank class."""
    own = getattr(model.config, "blank_token_id", None)
    return int(model.config.pad_token_id if own is None else own)
