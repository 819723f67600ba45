"""Defaults of a Whisper's generation config for decoding, if a checkpoint has none or an old one."""

from __future__ import annotations

from typing import Any

MULTILINGUAL_VOCABULARY = 51_865
"""Minimum size of a multilingual vocabulary; OpenAI's Whisper decides by it, too (`model.is_multilingual`)."""


def complete_generation_config(model: Any, tokenizer: Any) -> None:
    """Set the optional fields that `generate` requires; present ones are not changed.

    They are `is_multilingual`, `no_timestamps_token_id` and, of a multilingual model, `lang_to_id` and `task_to_id`:
    checkpoints of before 2023, and those saved without `generation_config.json`, lack them.
    """
    config = model.generation_config
    if getattr(config, "is_multilingual", None) is None:
        config.is_multilingual = model.config.vocab_size >= MULTILINGUAL_VOCABULARY
    if getattr(config, "no_timestamps_token_id", None) is None:
        config.no_timestamps_token_id = tokenizer.convert_tokens_to_ids("<|notimestamps|>")
    if not config.is_multilingual:
        return
    if not getattr(config, "lang_to_id", None):
        config.lang_to_id = _languages(tokenizer)
    if not getattr(config, "task_to_id", None):
        tasks = ("transcribe", "translate")
        config.task_to_id = {task: tokenizer.convert_tokens_to_ids(f"<|{task}|>") for task in tasks}


def _languages(tokenizer: Any) -> dict[str, int]:
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    known = tokenizer.get_vocab()
    tokens = [f"<|{code}|>" for code in LANGUAGES]
    return {token: known[token] for token in tokens if token in known}
