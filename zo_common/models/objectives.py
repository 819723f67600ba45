"""Objectives as pure functions of logits; per example, the mean comes last."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from zo_common.estimator.curvature import OutputTrace

IGNORE = -100


def label_losses(
    logits: torch.Tensor, labels: torch.Tensor, counted: torch.Tensor, trace: OutputTrace | None = None
) -> torch.Tensor:
    """Return the mean negative log-likelihood of each example's labels, in nats, from labelled positions alone.

    Args:
        logits: float32 (P, vocabulary), row by row.
        labels: (B, L).
        counted: bool (B, L), which positions are labelled, P in all.
        trace: receives the logits.

    Returns:
        float32 (B,); an example without any label has loss 0.
    """
    losses = F.cross_entropy(logits, labels[counted], reduction="none")
    if trace is not None:  # a label's loss is what its logit lacks of the normaliser: the vocabulary is summed once
        rows, counts = counted.nonzero()[:, 0], counted.sum(dim=1).clamp(min=1)
        normaliser = losses + logits.gather(1, labels[counted][:, None])[:, 0]
        trace.record(logits, normaliser, rows, 1 / (counts[rows] * len(labels)))
    return spread_over(losses, counted)


def spread_over(values: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Return each row's mean of values, (P,) of the marked positions of bool (B, L) → (B,); 0 for a row without any."""
    sums = torch.zeros(len(counted), device=values.device).index_add_(0, counted.nonzero()[:, 0], values)
    return sums / counted.sum(dim=1).clamp(min=1)


def entropy(logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Return the entropy of softmax(logits / temperature) over the last dimension, in nats, float32."""
    probs = (logits.float() / temperature).softmax(dim=-1)
    entropies: torch.Tensor = torch.special.entr(probs).sum(dim=-1)
    return entropies


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean of each row's marked values, (B, L) and bool (B, L) → (B,); 0 for a row without any."""
    return torch.where(mask, values, 0.0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def confident_labels(
    log_probs: torch.Tensor, labels: torch.Tensor, min_token: float = 0.0, min_utterance: float = 0.0
) -> torch.Tensor:
    """Return a hypothesis's labels with sufficient confidence; the others become −100.

    Args:
        log_probs: (B, L), of each label; values at a label of −100 are ignored.
        labels: (B, L).
        min_token: a label counts from this probability on.
        min_utterance: an utterance counts where the geometric mean of its labels' probabilities reaches this.
    """
    counted = labels != IGNORE
    sure = masked_mean(log_probs, counted).exp() >= min_utterance
    return torch.where(counted & (log_probs.exp() >= min_token) & sure[:, None], labels, IGNORE)
