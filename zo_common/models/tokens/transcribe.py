"""Greedy transcripts of models that write tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from zo_common.models.tokens.forms import Form, Wave

MAX_NEW_TOKENS = 224
BATCH_SIZE = 8


@torch.inference_mode()
def transcribe_tokens(
    model: Any,
    processor: Any,
    form: Form,
    waves: Sequence[Wave],
    on_progress: Callable[[int, int], None] | None = None,
) -> list[tuple[str, list[int]]]:
    """Transcripts of mono waveforms at the processor's rate, and the text tokens that they consist of.

    Those of a model that hears padding are made one at a time.

    Args:
        on_progress: called with (utterances done, utterances in all).
    """
    device = next(model.parameters()).device
    special = set(processor.tokenizer.all_special_ids) | {form.end}
    most, size = min(MAX_NEW_TOKENS, form.most), BATCH_SIZE if form.masked else 1
    found: list[tuple[str, list[int]]] = []
    for start in range(0, len(waves), size):
        inputs, prompt = form.to_generate(waves[start : start + size])
        inputs = {name: value.to(device) for name, value in inputs.items()}
        rows = model.generate(**inputs, max_new_tokens=most, num_beams=1, do_sample=False)
        for row in rows[:, prompt:]:
            tokens = [token for token in row.tolist() if token not in special]
            found.append((str(processor.tokenizer.decode(tokens, skip_special_tokens=True)).strip(), tokens))
        if on_progress is not None:
            on_progress(len(found), len(waves))
    return found
