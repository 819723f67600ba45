"""Objectives as pure functions of logits, and the loss of a Whisper batch; per example, the mean comes last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from zo_common.estimator.curvature import OutputTrace
from zo_common.models.whisper.forward import EncoderStates, decode, encode

IGNORE = -100


def token_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood of each example's tokens, in nats.

    Args:
        logits: (B, L, vocabulary).
        labels: (B, L); positions holding −100 do not count.

    Returns:
        float32 (B,); an example without any label has loss 0.
    """
    losses = F.cross_entropy(logits.transpose(1, 2).float(), labels, ignore_index=IGNORE, reduction="none")
    counts = (labels != IGNORE).sum(dim=1).clamp(min=1)
    return losses.sum(dim=1) / counts


def entropy(logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Entropy of softmax(logits / temperature) over the last dimension, in nats, float32."""
    probs = (logits.float() / temperature).softmax(dim=-1)
    entropies: torch.Tensor = torch.special.entr(probs).sum(dim=-1)
    return entropies


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of each row's marked values, (B, L) and bool (B, L) → (B,); 0 for a row without any."""
    return torch.where(mask, values, 0.0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def token_entropy(logits: torch.Tensor, mask: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Mean entropy of each example's marked positions, in nats: logits (B, L, vocabulary), bool (B, L) → (B,)."""
    return masked_mean(entropy(logits, temperature), mask)


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


@dataclass(frozen=True)
class WhisperBatch:
    """Inputs of the Whisper cross-entropy.

    Attributes:
        features: log-mel (B, n_mels, T), T even, trimmed to the batch.
        decoder_input_ids: (B, L): prompt (start of transcript …, no timestamps), text; padded with end of text.
        labels: (B, L): what each position must predict; −100 on the prompt and on padding.
    """

    features: torch.Tensor
    decoder_input_ids: torch.Tensor
    labels: torch.Tensor

    def to(self, device: torch.device) -> WhisperBatch:
        """The same batch on a device."""
        return WhisperBatch(self.features.to(device), self.decoder_input_ids.to(device), self.labels.to(device))


def whisper_losses(model: Any, batch: WhisperBatch, tail_tokens: int = 64) -> torch.Tensor:
    """Per-example cross-entropy (B,) of a batch; `tail_tokens` as in `whisper_forward.embed_window`."""
    states = encode(model, batch.features, tail_tokens)
    return decoder_losses(model, batch.decoder_input_ids, batch.labels, states)


def decoder_losses(
    model: Any,
    decoder_input_ids: torch.Tensor,
    labels: torch.Tensor,
    states: EncoderStates,
    trace: OutputTrace | None = None,
) -> torch.Tensor:
    """Per-example cross-entropy (B,), float32, of audio that is encoded already; token tensors as in `WhisperBatch`.

    `trace` is told the labelled positions' logits.
    """
    hidden = decode(model, decoder_input_ids, states)
    # only labelled positions meet the vocabulary: for Whisper-tiny that projection is a third of the decoder
    counted = labels != IGNORE
    rows = counted.nonzero()[:, 0]
    logits = model.proj_out(hidden[counted]).float()
    losses = F.cross_entropy(logits, labels[counted], reduction="none")
    counts = counted.sum(dim=1).clamp(min=1)
    if trace is not None:  # a label's loss is what its logit lacks of the normaliser: the vocabulary is summed once
        normaliser = losses + logits.gather(1, labels[counted][:, None])[:, 0]
        trace.record(logits, normaliser, rows, 1 / (counts[rows] * len(labels)))
    sums = torch.zeros(len(labels), device=losses.device).index_add_(0, rows, losses)
    return sums / counts


def whisper_labels(prompt: list[int], texts: list[list[int]], end: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Decoder inputs and labels of tokenised texts.

    `prompt` is the forced start (`<|startoftranscript|>` … `<|notimestamps|>`), `end` is `<|endoftext|>`.
    Position i predicts token i+1, so the last prompt token predicts the first text token and the last text token
    predicts `end`.
    """
    length = len(prompt) + max(len(t) for t in texts)
    inputs = torch.full((len(texts), length), end, dtype=torch.int64)
    labels = torch.full((len(texts), length), IGNORE, dtype=torch.int64)
    for row, text in enumerate(texts):
        tokens = [*prompt, *text]
        inputs[row, : len(tokens)] = torch.tensor(tokens)
        labels[row, len(prompt) - 1 : len(tokens)] = torch.tensor([*text, end])
    return inputs, labels
