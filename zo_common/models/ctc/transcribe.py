"""Greedy decoding of CTC models: the most likely class of every frame, repeats merged, blanks removed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zo_common.models.ctc.forward import ctc_logits, prepare_waves
from zo_common.models.ctc.loss import blank_of


@torch.inference_mode()
def transcribe_waves(
    model: Any,
    processor: Any,
    waves: Sequence[NDArray[np.float32]],
    *,
    batch_size: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Return transcripts of mono waveforms at the processor's sampling rate, without a language model.

    Args:
        batch_size: padding affects models with a group norm, so published results use 1.
        on_progress: called with (utterances done, utterances in all).

    Raises:
        DataError: an utterance is too short for a single frame.
    """
    device = next(model.parameters()).device
    texts: list[str] = []
    for start in range(0, len(waves), batch_size):
        values, lengths = prepare_waves(processor.feature_extractor, waves[start : start + batch_size])
        logits, frames = ctc_logits(model, values.to(device), lengths.to(device))
        classes = logits.argmax(dim=2).cpu()
        blank = blank_of(model)
        texts += [spelled(processor.tokenizer, row[:n], blank) for row, n in zip(classes, frames.tolist(), strict=True)]
        if on_progress is not None:
            on_progress(len(texts), len(waves))
    return [text.strip() for text in texts]


def spelled(tokenizer: Any, classes: torch.Tensor, blank: int) -> str:
    """Return the text of the likeliest classes of an utterance's frames, (T,)."""
    if hasattr(tokenizer, "word_delimiter_token"):
        return str(tokenizer.decode(classes))  # which joins repeats and drops blanks
    joined = [int(c) for c in torch.unique_consecutive(classes) if int(c) != blank]
    return str(tokenizer.decode(joined, skip_special_tokens=True, group_tokens=False))
