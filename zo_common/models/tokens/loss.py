"""The loss that a step perturbs: one batch of an autoregressive model, at the requested precision."""

from __future__ import annotations

from typing import Any

import torch

from zo_common.estimator.curvature import OutputTrace
from zo_common.models.compute import autocast
from zo_common.models.objectives import IGNORE, label_losses
from zo_common.models.tokens.batch import TokenBatch


class TokenLoss:
    """Supervised per-example losses of one batch, in nats a token, as `estimator.LossFn`.

    Attributes:
        trace: where it is set, every call tells it the logits at the labelled positions.

    Args:
        precision: "float32", "bfloat16" or "float16", for matrix products; losses are float32.
    """

    def __init__(self, model: Any, batch: TokenBatch, precision: str = "float32") -> None:
        self.trace: OutputTrace | None = None
        self._model, self._batch, self._precision = model, batch, precision

    def __call__(self) -> torch.Tensor:
        """Return losses (B,), float32."""
        counted, logits = self.logits()
        return label_losses(logits, self._batch.labels, counted, self.trace)

    def logits(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which positions are labelled, bool (B, L), and their logits, float32 (P, V)."""
        labels = self._batch.labels
        with autocast(self._precision, labels.device):
            logits = self._model(**self._batch.inputs, use_cache=False).logits
        counted = labels != IGNORE
        return counted, logits[:, : labels.shape[1]][counted].float()
