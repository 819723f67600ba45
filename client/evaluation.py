"""Held-out evaluation, by a device or a server with speech of its own: loss, and WER decoded on the 30 s window."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from client.dataset import SpeechDataset
from zo_common.metrics import Scores
from zo_common.objectives import whisper_losses
from zo_common.transcribe import evaluate_texts

_TAIL = 128  # a finer merged tail than in training: the loss then follows the 30 s window's within a few percent


@dataclass(frozen=True)
class Evaluation:
    """Mean loss over utterances (nats a token), error counts, and the transcripts."""

    loss: float
    scores: Scores
    hypotheses: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """Plain numbers for logs."""
        return {
            "loss": self.loss,
            "wer": self.scores.wer,
            "cer": self.scores.cer,
            "raw_wer": self.scores.raw_wer,
            "utterances": self.scores.utterances,
        }


@torch.inference_mode()
def held_out_loss(model: nn.Module, data: SpeechDataset, batch_size: int = 16) -> float:
    """Mean per-utterance loss in float32."""
    device = next(model.parameters()).device
    batches = (data.batch(chosen).to(device) for chosen in data.length_sorted_batches(batch_size))
    losses = [whisper_losses(model, batch, _TAIL) for batch in batches]
    return float(np.mean(torch.cat(losses).double().numpy(force=True)))


def evaluate(
    model: nn.Module,
    processor: Any,
    data: SpeechDataset,
    *,
    language: str = "en",
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Loss and word error rates of a data set."""
    windows = [example.window() for example in data.examples]
    scores, hypotheses = evaluate_texts(
        model, processor, windows, data.texts, language=language, on_progress=on_progress
    )
    return Evaluation(held_out_loss(model, data), scores, tuple(hypotheses))
