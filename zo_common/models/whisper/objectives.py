"""The supervised loss of a Whisper batch, per example, and its inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from zo_common.estimator.curvature import OutputTrace
from zo_common.models.objectives import IGNORE, label_losses
from zo_common.models.whisper.forward import EncoderStates, decode, encode


@dataclass(frozen=True)
class WhisperBatch:
    """Inputs of the Whisper cross-entropy.

    Attributes:
        features: log-mel (B, n_mels, T), T even, trimmed to the batch.
        decoder_input_ids: (B, L): prompt (start of transcript …, no timestamps), text; padded with end of text.
        labels: (B, L): target of each position; −100 on the prompt and on padding.
    """

    features: torch.Tensor
    decoder_input_ids: torch.Tensor
    labels: torch.Tensor

    def to(self, device: torch.device) -> WhisperBatch:
        """Return the same batch on a device."""
        return WhisperBatch(self.features.to(device), self.decoder_input_ids.to(device), self.labels.to(device))


def whisper_losses(model: Any, batch: WhisperBatch, tail_tokens: int = 64) -> torch.Tensor:
    """Return the per-example cross-entropy (B,) of a batch; `tail_tokens` as in `embed_window`."""
    states = encode(model, batch.features, tail_tokens)
    return decoder_losses(model, batch.decoder_input_ids, batch.labels, states)


def decoder_losses(
    model: Any,
    decoder_input_ids: torch.Tensor,
    labels: torch.Tensor,
    states: EncoderStates,
    trace: OutputTrace | None = None,
) -> torch.Tensor:
    """Return the per-example cross-entropy (B,), float32, of encoded audio; token tensors as in `WhisperBatch`.

    `trace` records the labelled positions' logits.
    """
    hidden = decode(model, decoder_input_ids, states)
    # only labelled positions are projected to the vocabulary: for Whisper-tiny that is a third of the decoder
    counted = labels != IGNORE
    return label_losses(model.proj_out(hidden[counted]).float(), labels, counted, trace)


def whisper_labels(prompt: list[int], texts: list[list[int]], end: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return decoder inputs and labels of tokenised texts.

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
