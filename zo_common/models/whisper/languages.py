"""Language codes of Whisper."""

from __future__ import annotations


def whisper_code(language: str) -> str:
    """Return Whisper's code of a language: "zh" for "zh-CN", "Chinese" or "Mandarin"; an unknown one in lower case."""
    from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

    name = language.strip().lower()
    code: str = TO_LANGUAGE_CODE.get(name, name)
    primary = code.replace("_", "-").partition("-")[0]
    return primary if code not in LANGUAGES and primary in LANGUAGES else code
