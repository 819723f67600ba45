"""Letter case by language: Turkish and Azerbaijani have small letters for I and İ that Unicode's defaults ignore."""

from __future__ import annotations

import re

_TURKISH = re.compile("tr|tur|turkish|az|aze|azj|azerbaijani")


def primary(language: str) -> str:
    """Return a language code without its region or script, or a language's name, in lower case: "zh" for "zh-CN"."""
    return re.split("[-_]", language.strip().lower())[0]


def has_turkish_case(language: str) -> bool:
    """Return whether a language (a code or English name) has the pairs I ı and İ i."""
    return _TURKISH.fullmatch(primary(language)) is not None


def turkish_lower(text: str) -> str:
    """Return a composed text in lower case, of a language with Turkish case."""
    return text.replace("İ", "i").replace("I", "ı").lower()


def turkish_upper(text: str) -> str:
    """Return a composed text in upper case, of a language with Turkish case."""
    return text.replace("i", "İ").replace("ı", "I").upper()
