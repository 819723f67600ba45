"""Objectives as pure functions of logits; per example, the mean comes last."""

from __future__ import annotations

import torch

IGNORE = -100


def entropy(logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Entropy of softmax(logits / temperature) over the last dimension, in nats, float32."""
    probs = (logits.float() / temperature).softmax(dim=-1)
    entropies: torch.Tensor = torch.special.entr(probs).sum(dim=-1)
    return entropies


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of each row's marked values, (B, L) and bool (B, L) → (B,); 0 for a row without any."""
    return torch.where(mask, values, 0.0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def confident_labels(
    log_probs: torch.Tensor, labels: torch.Tensor, min_token: float = 0.0, min_utterance: float = 0.0
) -> torch.Tensor:
    """The labels of a hypothesis that are trusted; the others become −100.

    Args:
        log_probs: (B, L), of each label; what stands at a label of −100 does not matter.
        labels: (B, L).
        min_token: a label counts from this probability on.
        min_utterance: an utterance counts where the geometric mean of its labels' probabilities reaches this.
    """
    counted = labels != IGNORE
    sure = masked_mean(log_probs, counted).exp() >= min_utterance
    return torch.where(counted & (log_probs.exp() >= min_token) & sure[:, None], labels, IGNORE)
