"""Greedy transcripts of autoregressive models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from zo_common.models.loops import NO_REPEAT_NGRAM_SIZE, is_loop
from zo_common.models.quiet import transformers_quiet
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
    """Return transcripts of mono waveforms at the processor's rate, and the text tokens that they consist of.

    Models affected by padding decode one utterance at a time; a repetition loop is decoded again, as with Whisper.

    Args:
        on_progress: called with (utterances done, utterances in all).
    """
    size = BATCH_SIZE if form.masked else 1
    special = set(processor.tokenizer.all_special_ids) | {form.end}
    found: list[tuple[str, list[int]]] = []
    for start in range(0, len(waves), size):
        group = waves[start : start + size]
        written = _written(processor, special, _generate(model, form, group))
        loops = [row for row, (text, _) in enumerate(written) if is_loop(text)]
        if loops:
            rows = _generate(model, form, [group[row] for row in loops], no_repeat_ngram_size=NO_REPEAT_NGRAM_SIZE)
            for row, one in zip(loops, _written(processor, special, rows), strict=True):
                written[row] = one
        found += written
        if on_progress is not None:
            on_progress(len(found), len(waves))
    return found


def _generate(model: Any, form: Form, waves: Sequence[Wave], **others: Any) -> torch.Tensor:
    """Greedy tokens behind the prompt, (B, length)."""
    device = next(model.parameters()).device
    inputs, prompt = form.to_generate(waves)
    inputs = {name: value.to(device) for name, value in inputs.items()}
    most = min(MAX_NEW_TOKENS, form.most)
    with transformers_quiet():
        rows: torch.Tensor = model.generate(**inputs, max_new_tokens=most, num_beams=1, do_sample=False, **others)
    return rows[:, prompt:]


def _written(processor: Any, special: set[int], rows: torch.Tensor) -> list[tuple[str, list[int]]]:
    """Return the text of each row, and its tokens without control tokens."""
    kept = [[token for token in row if token not in special] for row in rows.tolist()]
    return [(str(processor.tokenizer.decode(tokens, skip_special_tokens=True)).strip(), tokens) for tokens in kept]
