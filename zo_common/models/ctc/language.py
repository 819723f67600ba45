"""The language adapters of multilingual CTC models (MMS): a vocabulary, a head and small layers for each language."""

from __future__ import annotations

import difflib
from typing import Any

from zo_common.errors import ConfigError, ModelNotFound
from zo_common.models.letter_case import primary
from zo_common.models.whisper.languages import whisper_code


def languages_of(tokenizer: Any) -> list[str]:
    """Return the languages of a nested vocabulary; empty where the vocabulary is one for all."""
    vocabulary = getattr(tokenizer, "vocab", None)
    if not isinstance(vocabulary, dict) or not all(isinstance(letters, dict) for letters in vocabulary.values()):
        return []
    return sorted(vocabulary)


def use_language(source: str, model: Any, tokenizer: Any, language: str) -> None:
    """Load the adapter of a language into a model that has adapters; other models stay as they are.

    Args:
        language: as the vocabulary names it (ISO 639-3: "fra"), in two letters, or its English name; "" keeps the
            checkpoint's own.

    Raises:
        ConfigError: the vocabulary has no such language.
        ModelNotFound: the adapter's file is missing.
    """
    known = languages_of(tokenizer)
    if not known or not language:
        return
    own, code = tokenizer.target_lang, _code(source, language, known)
    if code != own:
        tokenizer.set_target_lang(code)
    try:
        model.load_adapter(code)
    except OSError:
        if code != own:  # the checkpoint's own language is in its weights, as in a model that was fine-tuned
            raise ModelNotFound(
                f"model {source!r} has no adapter.{code}.safetensors, which language {language!r} needs: download it "
                "into the directory"
            ) from None


def adapter_tensors(model: Any) -> dict[str, Any]:
    """Return the content of a language's adapter file, of a model that has adapters; empty for others."""
    if getattr(model.config, "adapter_attn_dim", None) is None or not hasattr(model, "_get_adapters"):
        return {}
    return {name: parameter.detach().contiguous() for name, parameter in model._get_adapters().items()}


def _code(source: str, language: str, known: list[str]) -> str:
    from transformers.models.omniasr.processing_omniasr import ISO_639_1_TO_LANGUAGE

    wanted = language.strip().lower()
    for code in (wanted, primary(wanted), ISO_639_1_TO_LANGUAGE.get(whisper_code(wanted), "")[:3]):
        if code in known:
            return code
    near = ", ".join(difflib.get_close_matches(wanted, known, n=3, cutoff=0.3) or known[:5])
    raise ConfigError(
        f"language is {language!r}, model {source!r} has adapters for {len(known)} others: use a code of three letters "
        f"such as {near}"
    )
