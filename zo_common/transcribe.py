"""Greedy decoding on Whisper's 30 s window: what a word error rate is measured on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from zo_common.metrics import Scores, score

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
    """Transcripts of full log-mel windows, each (n_mels, 3000), by greedy search without timestamps.

    Args:
        on_progress: called with (utterances done, utterances in all).
    """
    texts: list[str] = []
    for tokens in _generate(model, features, language, batch_size):
        texts += processor.batch_decode(tokens, skip_special_tokens=True)
        if on_progress is not None:
            on_progress(len(texts), len(features))
    return [text.strip() for text in texts]


def greedy_tokens(
    model: Any, processor: Any, features: Sequence[torch.Tensor], *, language: str = "en", batch_size: int = 16
) -> list[list[int]]:
    """The text tokens, as they were chosen, of the transcripts that `transcribe` gives: hypotheses to train on."""
    special = set(processor.tokenizer.all_special_ids)
    first_special = int(processor.tokenizer.eos_token_id)  # all tokens from end of text on are control tokens
    return [
        [token for token in row.tolist() if token < first_special and token not in special]
        for tokens in _generate(model, features, language, batch_size)
        for row in tokens
    ]


@torch.inference_mode()
def _generate(model: Any, features: Sequence[torch.Tensor], language: str, batch_size: int) -> Iterator[torch.Tensor]:
    """Greedy tokens of each batch, (B, length)."""
    options: dict[str, Any] = {"num_beams": 1, "do_sample": False, "max_new_tokens": MAX_NEW_TOKENS}
    if model.generation_config.is_multilingual:
        options |= {"language": language, "task": "transcribe"}
    for start in range(0, len(features), batch_size):
        window = torch.stack(list(features[start : start + batch_size]))
        yield model.generate(window.to(next(model.parameters()).device), **options)


def evaluate_texts(
    model: Any,
    processor: Any,
    features: Sequence[torch.Tensor],
    references: Sequence[str],
    *,
    language: str = "en",
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[Scores, list[str]]:
    """Error counts and transcripts of full windows against references."""
    hypotheses = transcribe(model, processor, features, language=language, on_progress=on_progress)
    return score(references, hypotheses), hypotheses
