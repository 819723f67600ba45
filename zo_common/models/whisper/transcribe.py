"""Greedy decoding on Whisper's 30 s window, for word error rates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from zo_common.models.loops import NO_REPEAT_NGRAM_SIZE, is_loop
from zo_common.models.quiet import transformers_quiet
from zo_common.models.whisper.languages import whisper_code

MAX_NEW_TOKENS = 224  # half the text context, as OpenAI's Whisper decodes by default


def transcribe(
    model: Any,
    processor: Any,
    features: Sequence[torch.Tensor],
    *,
    language: str = "en",
    batch_size: int = 16,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Transcribe full log-mel windows, each (n_mels, 3000), by greedy search without timestamps.

    A transcript that repeats itself (`loops.is_loop`) is decoded again, as in OpenAI's Whisper. That samples at a
    higher temperature; here the greedy search is repeated without any repeated run of `NO_REPEAT_NGRAM_SIZE` tokens, so
    that the same weights always give the same transcript. Otherwise one endless loop could have more words than all
    other recordings together.

    Args:
        on_progress: called with (utterances done, total).
    """
    found = greedy(model, processor, features, language=language, batch_size=batch_size, on_progress=on_progress)
    return [text for text, _ in found]


def greedy_tokens(
    model: Any, processor: Any, features: Sequence[torch.Tensor], *, language: str = "en", batch_size: int = 16
) -> list[list[int]]:
    """Return the text tokens, as decoded, of the transcripts of `transcribe`: hypotheses to train on."""
    return [tokens for _, tokens in greedy(model, processor, features, language=language, batch_size=batch_size)]


def greedy(
    model: Any,
    processor: Any,
    features: Sequence[torch.Tensor],
    *,
    language: str = "en",
    batch_size: int = 16,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[tuple[str, list[int]]]:
    """Return transcripts with their text tokens; see `transcribe`."""
    special = set(processor.tokenizer.all_special_ids)
    first_special = int(processor.tokenizer.eos_token_id)  # all tokens from end of text on are control tokens
    found: list[tuple[str, list[int]]] = []
    for rows in _without_loops(model, processor, features, language, batch_size):
        texts = processor.batch_decode(rows, skip_special_tokens=True)
        for row, text in zip(rows, texts, strict=True):
            tokens = [token for token in row.tolist() if token < first_special and token not in special]
            found.append((text.strip(), tokens))
        if on_progress is not None:
            on_progress(len(found), len(features))
    return found


def _without_loops(
    model: Any, processor: Any, features: Sequence[torch.Tensor], language: str, batch_size: int
) -> Iterator[list[torch.Tensor]]:
    """Yield rows of tokens of each batch; those of a loop are decoded again without repeated runs of tokens."""
    for start, tokens in enumerate(_generate(model, features, language, batch_size)):
        rows = list(tokens)
        texts = processor.batch_decode(rows, skip_special_tokens=True)
        loops = [row for row, text in enumerate(texts) if is_loop(text)]
        if loops:
            again = [features[start * batch_size + row] for row in loops]
            (found,) = _generate(model, again, language, len(again), no_repeat_ngram_size=NO_REPEAT_NGRAM_SIZE)
            for row, one in zip(loops, found, strict=True):
                rows[row] = one
        yield rows


@torch.inference_mode()
def _generate(
    model: Any, features: Sequence[torch.Tensor], language: str, batch_size: int, **others: Any
) -> Iterator[torch.Tensor]:
    """Yield greedy tokens of each batch, (B, length)."""
    options: dict[str, Any] = {"num_beams": 1, "do_sample": False, "max_new_tokens": MAX_NEW_TOKENS, **others}
    if model.generation_config.is_multilingual:
        options |= {"language": whisper_code(language), "task": "transcribe"}
    for start in range(0, len(features), batch_size):
        window = torch.stack(list(features[start : start + batch_size]))
        with transformers_quiet():
            tokens = model.generate(window.to(next(model.parameters()).device), **options)
        yield tokens
