"""The loss of a ZO step: one Whisper batch under the current weights, at a chosen precision."""

from __future__ import annotations

from typing import Any

import torch

from zo_common.estimator.curvature import OutputTrace
from zo_common.models.compute import autocast
from zo_common.models.whisper.forward import EncoderStates, encode
from zo_common.models.whisper.frozen_prefix import FrozenPrefix
from zo_common.models.whisper.objectives import WhisperBatch, decoder_losses


class WhisperLoss:
    """Per-example losses of one batch, as `estimator.LossFn`; equal, bit for bit, to `objectives.whisper_losses`.

    1. The first call computes and keeps the encoder stages before all trained tensors.
    2. Every call runs the rest of the encoder and the decoder under the current weights.

    An object must not outlive a change of a tensor that is not trained. It keeps one encoder state a batch.

    Attributes:
        trace: if set, every call records in it the logits at the labelled positions.

    Args:
        prefix: made from the model and the names of the trained tensors.
        precision: "float32", "bfloat16" or "float16", for matrix products; losses are float32.
    """

    def __init__(
        self, model: Any, batch: WhisperBatch, prefix: FrozenPrefix, tail_tokens: int = 64, precision: str = "float32"
    ) -> None:
        self.trace: OutputTrace | None = None
        self._model = model
        self._decoder_input_ids, self._labels = batch.decoder_input_ids, batch.labels
        self._prefix = prefix
        self._tail_tokens = tail_tokens
        self._precision = precision
        self._features: torch.Tensor | None = batch.features
        self._start: EncoderStates | None = None

    def __call__(self) -> torch.Tensor:
        """Return losses (B,), float32, in nats per token."""
        with autocast(self._precision, self._labels.device):
            return decoder_losses(self._model, self._decoder_input_ids, self._labels, self._encode(), self.trace)

    def _encode(self) -> EncoderStates:
        if self._start is None:
            assert self._features is not None
            if self._prefix.stages == 0:
                return encode(self._model, self._features, self._tail_tokens)
            self._start = self._prefix.start(self._features, self._tail_tokens)
            self._features = None  # free their memory: the encoder state replaces them
        return self._prefix.finish(self._start)
