"""Objectives of CTC models as pure functions of logits: supervised CTC, and entropy and class confusion of the frames.

Entropy minimisation and minimum class confusion adapt a model to an utterance without its text: SUTA (arXiv
2203.14222), Jin et al. (1912.03699). Everything is per example; the mean over a batch comes last, elsewhere.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from zo_common.models.objectives import entropy, masked_mean


def ctc_losses(
    logits: torch.Tensor, lengths: torch.Tensor, labels: torch.Tensor, label_lengths: torch.Tensor, blank: int
) -> torch.Tensor:
    """Return the negative log-likelihood of each example's labels under CTC, in nats a character.

    The loss is normalised by characters, so that long and short utterances have the same weight, and the value is
    comparable to Whisper's nats per token. Sums are in float64, since a step measures differences of two losses.

    Args:
        logits: (B, T, V).
        lengths: (B,) number of valid frames.
        labels: (B, L) integers; values beyond an example's length are ignored.
        label_lengths: (B,); an example without characters has the loss of silence, in nats a frame.
        blank: id of the blank class.

    Returns:
        float32 (B,); 0 for an example that has no alignment (`alignable`).
    """
    possible = alignable(lengths, labels, label_lengths)
    # an impossible example is replaced by an empty one, so that a NaN still means that the logits are not finite
    used = torch.where(possible, label_lengths, 0)
    places = torch.arange(labels.shape[1], device=labels.device)
    filled = torch.where(places < used[:, None], labels, (blank + 1) % logits.shape[2])
    log_probs = logits.double().log_softmax(dim=2).transpose(0, 1)
    losses = F.ctc_loss(log_probs, filled, lengths, used, blank=blank, reduction="none")
    units = torch.where(used > 0, used, lengths.clamp(min=1))
    return torch.where(possible, losses / units, 0.0).float()


def alignable(lengths: torch.Tensor, labels: torch.Tensor, label_lengths: torch.Tensor) -> torch.Tensor:
    """Return which examples have an alignment, bool (B,): a frame for each character, one more between equal ones."""
    places = torch.arange(labels.shape[1], device=labels.device)
    repeats = (labels[:, 1:] == labels[:, :-1]) & (places[1:] < label_lengths[:, None])
    return label_lengths + repeats.sum(dim=1) <= lengths


def frame_mask(lengths: torch.Tensor, frames: int) -> torch.Tensor:
    """Return which of `frames` frames are an example's own, bool (B, frames), for lengths (B,)."""
    return torch.arange(frames, device=lengths.device) < lengths[:, None]


def non_blank_mask(logits: torch.Tensor, lengths: torch.Tensor, blank: int) -> torch.Tensor:
    """Return which frames (of logits (B, T, V), first `lengths` (B,)) are most likely a character, bool (B, T)."""
    return (logits.argmax(dim=2) != blank) & frame_mask(lengths, logits.shape[1])


def frame_entropy(logits: torch.Tensor, mask: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Return the mean entropy of the marked frames, in nats.

    Args:
        logits: (B, T, V), divided by `temperature`.
        mask: bool (B, T).

    Returns:
        float32 (B,); 0 if no frame is marked, as in an utterance transcribed as silence.
    """
    return masked_mean(entropy(logits, temperature), mask)


def confidence_weights(logits: torch.Tensor, mask: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Return 1 + exp(−entropy) for marked frames, 0 elsewhere, float32 (B, T): a confident frame has weight 2.

    Reference implementations scale these to a mean of 1; the scale cancels in `class_confusion`.
    """
    return torch.where(mask, 1.0 + torch.exp(-entropy(logits, temperature)), 0.0)


def class_confusion(logits: torch.Tensor, weights: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Return the minimum class confusion of each example's frames: a class's mean share of confusion with others.

    With p_lj the probability of class j in frame l and w_l its weight, the confusion matrix is C = pᵀ diag(w) p, and
    the loss 1/V · Σ_j Σ_{i≠j} C_ij / Σ_i C_ij. As the classes of a frame add up to one, Σ_i C_ij = Σ_l w_l p_lj, so it
    is 1 − 1/V · Σ_j (Σ_l w_l p_lj²) / (Σ_l w_l p_lj), which needs no matrix. A class without any probability counts as
    wholly confused, the limit, where the matrix would give 0/0.

    Args:
        logits: (B, T, V), divided by `temperature`.
        weights: (B, T), not negative: a bool mask, or `confidence_weights`.

    Returns:
        float32 (B,), 0 … 1; 1 where no frame counts.
    """
    marked = (weights > 0)[:, :, None]
    probs = (torch.where(marked, logits, 0.0).float() / temperature).softmax(dim=2)
    shares = weights.to(probs)[:, :, None] * probs
    sums = shares.sum(dim=1)
    kept = torch.where(sums > 0, (shares * probs).sum(dim=1) / sums, 0.0)
    return 1.0 - kept.mean(dim=1)


def suta_losses(
    logits: torch.Tensor,
    mask: torch.Tensor,
    temperature: float = 2.5,
    entropy_weight: float = 0.3,
    reweight: bool = True,
    *,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """entropy_weight · `frame_entropy` + (1 − entropy_weight) · `class_confusion`, float32 (B,).

    Args:
        logits: (B, T, V).
        mask: bool (B, T): the frames whose entropy counts, such as `non_blank_mask`.
        reweight: whether the confusion of `mask` is weighted by confidence, where `weights` is not given.
        weights: (B, T) of the frames whose confusion counts, taken as constants: SUTA looks at every frame there, and
            its gradient does not flow through them. A caller that compares two evaluations gives both the same.
    """
    if weights is None:
        weights = confidence_weights(logits, mask, temperature).detach() if reweight else mask
    sharpness = frame_entropy(logits, mask, temperature)
    return entropy_weight * sharpness + (1.0 - entropy_weight) * class_confusion(logits, weights, temperature)
