"""Losses of Whisper without a transcript: entropy of, or self-training on, its greedy hypothesis, teacher-forced."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch

from zo_common.errors import ConfigError
from zo_common.estimator.curvature import OutputTrace
from zo_common.models.compute import autocast
from zo_common.models.objectives import IGNORE, confident_labels, entropy, masked_mean
from zo_common.models.whisper.forward import decode
from zo_common.models.whisper.frozen_prefix import FrozenPrefix
from zo_common.models.whisper.loss import WhisperLoss
from zo_common.models.whisper.objectives import WhisperBatch

Objective = Literal["self-training", "entropy"]


class HypothesisLoss(WhisperLoss):
    """Per-example losses, in nats a token, of a batch whose labels are the model's own hypotheses.

    1. The first call (or `freeze`, under the unperturbed weights) decides which tokens are trusted: those with at least
       `min_token` probability in utterances of at least `min_utterance` (geometric mean over the tokens).
    2. Every call returns the mean over the trusted tokens of each utterance: the cross-entropy of the hypothesis
       ("self-training") or the entropy of the predicted tokens ("entropy"); 0 if no token is trusted.

    Args:
        batch: labels of `transcribe.greedy_tokens`, through `whisper_labels`.
        prefix, tail_tokens, precision: as in `WhisperLoss`.
    """

    def __init__(
        self,
        model: Any,
        batch: WhisperBatch,
        prefix: FrozenPrefix,
        tail_tokens: int = 64,
        precision: str = "float32",
        *,
        objective: Objective = "self-training",
        min_token: float = 0.0,
        min_utterance: float = 0.0,
    ) -> None:
        super().__init__(model, batch, prefix, tail_tokens, precision)
        if objective not in get_args(Objective):
            raise ConfigError(f"objective is {objective!r}, expected one of {', '.join(get_args(Objective))}")
        for name, value in (("min-token", min_token), ("min-utterance", min_utterance)):
            if not 0 <= value <= 1:
                raise ConfigError(f"{name} is {value}, expected a probability, 0 … 1")
        self._objective = objective
        self._floors = min_token, min_utterance
        self._trusted: torch.Tensor | None = None

    @property
    def trusted(self) -> torch.Tensor | None:
        """The trusted positions, bool (B, L); None before the first call."""
        return self._trusted

    @torch.no_grad()
    def freeze(self) -> HypothesisLoss:
        """Select the trusted tokens under the present weights; return this object."""
        self._trusted = self._trust(self._tokens()[0])
        return self

    def __call__(self) -> torch.Tensor:
        """Return losses (B,), float32, in nats per token."""
        log_probs, uncertainty, logits = self._tokens()
        if self._trusted is None:
            self._trusted = self._trust(log_probs)
        if self.trace is not None:
            self._tell(self.trace, logits, self._trusted)
        return masked_mean(uncertainty if self._objective == "entropy" else -log_probs, self._trusted)

    def _trust(self, log_probs: torch.Tensor) -> torch.Tensor:
        return confident_labels(log_probs, self._labels, *self._floors) != IGNORE

    def _tell(self, trace: OutputTrace, logits: torch.Tensor, trusted: torch.Tensor) -> None:
        """Record the trusted positions' logits, of those (P, V) of all labelled ones."""
        if self._objective == "entropy":
            raise ConfigError(
                "learning-rate is 'auto' with objective 'entropy', whose curvature is no Fisher matrix: set a number"
            )
        logits, rows = logits[trusted[self._labels != IGNORE]], trusted.nonzero()[:, 0]
        counts = trusted.sum(dim=1).clamp(min=1)
        trace.record(logits, logits.logsumexp(dim=1), rows, 1 / (counts[rows] * len(trusted)))

    def _tokens(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return log-probability and entropy at each label, (B, L), else 0, and the labels' logits (P, V)."""
        counted = self._labels != IGNORE
        with autocast(self._precision, self._labels.device):
            hidden = decode(self._model, self._decoder_input_ids, self._encode())
            logits = self._model.proj_out(hidden[counted]).float()
        chosen = logits.log_softmax(dim=1).gather(1, self._labels[counted][:, None])[:, 0]
        log_probs, uncertainty = (torch.zeros(counted.shape, device=logits.device) for _ in range(2))
        log_probs[counted], uncertainty[counted] = chosen, entropy(logits)
        return log_probs, uncertainty, logits
