"""Word and character error rates as counts that can be summed over clients (jiwer), raw and normalised."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import jiwer

from zo_common.models.letter_case import has_turkish_case, primary

Normalizer = Callable[[str], str]
Headline = Literal["wer", "cer"]

# codes (ISO 639-1 and -3) and names of Whisper's tokenizer and Common Voice
_UNSPACED = re.compile(
    "zh|zho|cmn|chinese|mandarin|yue|cantonese|wuu|nan|hak|ja|jpn|japanese|th|tha|thai|lo|lao|my|mya|burmese|myanmar|"
    "km|khm|khmer|bo|bod|tibetan"
)


@dataclass(frozen=True)
class ErrorCounts:
    """Edit operations against `length` reference units (words or characters); sum counts before taking a rate."""

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    length: int = 0

    @property
    def errors(self) -> int:
        """Substitutions + deletions + insertions."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors ÷ reference units; 0 for two empty texts, may exceed 1."""
        return self.errors / self.length if self.length else float(self.errors > 0)

    def __add__(self, other: ErrorCounts) -> ErrorCounts:
        return ErrorCounts(
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
            self.length + other.length,
        )


@dataclass(frozen=True)
class Scores:
    """Error counts of a set of utterances: words and characters, normalised and raw.

    Attributes:
        raw_characters: zero for devices, whose messages do not have it.
    """

    words: ErrorCounts = ErrorCounts()
    characters: ErrorCounts = ErrorCounts()
    raw_words: ErrorCounts = ErrorCounts()
    utterances: int = 0
    raw_characters: ErrorCounts = ErrorCounts()

    @property
    def wer(self) -> float:
        """Word error rate after the language's normaliser."""
        return self.words.rate

    @property
    def cer(self) -> float:
        """Character error rate after the language's normaliser."""
        return self.characters.rate

    @property
    def raw_wer(self) -> float:
        """Word error rate of the raw texts."""
        return self.raw_words.rate

    @property
    def raw_cer(self) -> float:
        """Character error rate of the raw texts."""
        return self.raw_characters.rate

    def headline(self, language: str) -> float:
        """Return the headline rate of a language: see `headline_metric`."""
        return self.cer if headline_metric(language) == "cer" else self.wer

    def summary(self, language: str) -> dict[str, Any]:
        """Return rates for tables and logs, with the names of the headline metric and of the normaliser."""
        rates = {"wer": self.wer, "cer": self.cer, "raw_wer": self.raw_wer}
        if self.raw_characters.length:
            rates["raw_cer"] = self.raw_cer
        named = {"headline": headline_metric(language), "normalizer": normalizer_name(language)}
        return {**rates, "utterances": self.utterances, **named}

    def __add__(self, other: Scores) -> Scores:
        return Scores(
            self.words + other.words,
            self.characters + other.characters,
            self.raw_words + other.raw_words,
            self.utterances + other.utterances,
            self.raw_characters + other.raw_characters,
        )


@lru_cache(maxsize=8)
def whisper_normalizer(language: str = "en") -> Normalizer:
    """Return OpenAI's Whisper normaliser of a language, as used for published error rates.

    English has its own; all other languages have the basic one (Radford et al. 2022, appendix C), with the marks of
    letters kept: without them Hindi loses its vowels, and errors in diacritics do not count. Turkish and Azerbaijani
    have different small letters for I and İ, which Unicode's default case mapping ignores.

    Args:
        language: code ("en", "de", "zh") or English name, as a run's `language`.
    """
    from whisper_normalizer.basic import BasicTextNormalizer
    from whisper_normalizer.english import EnglishTextNormalizer

    if is_english(language):
        english: Normalizer = EnglishTextNormalizer()
        return english
    basic: Normalizer = BasicTextNormalizer(preserve_marks=True)
    if not has_turkish_case(language):
        return basic
    return lambda text: basic(unicodedata.normalize("NFC", text).replace("İ", "i").replace("I", "ı"))


def is_english(language: str) -> bool:
    """Return whether a language code or name, with or without a region, is English; an empty one counts as English."""
    return primary(language) in ("", "en", "eng", "english")


def normalizer_name(language: str = "en") -> str:
    """Return the name of `whisper_normalizer(language)` in tables and results."""
    if is_english(language):
        return "Whisper's English normaliser"
    return "Whisper's basic normaliser, marks kept" + (", Turkish case" if has_turkish_case(language) else "")


def headline_metric(language: str = "en") -> Headline:
    """Return the headline error rate of a language: "cer" if words are not separated by spaces, else "wer".

    A text without spaces is one word, which one wrong character makes wrong; Whisper's published rates of these
    languages are over characters, too (Radford et al. 2022, appendix C).
    """
    return "cer" if is_unspaced(language) else "wer"


def is_unspaced(language: str) -> bool:
    """Return whether a language (a code or English name, with or without a region) is written without spaces."""
    return _UNSPACED.fullmatch(primary(language)) is not None


def count_words(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorCounts:
    """Count word edits of paired texts; for a reference without words every hypothesis word is an insertion."""
    return _count(references, hypotheses, characters=False)


def count_characters(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorCounts:
    """Count character edits of paired texts."""
    return _count(references, hypotheses, characters=True)


def _count(references: Sequence[str], hypotheses: Sequence[str], characters: bool) -> ErrorCounts:
    total = ErrorCounts()
    pairs = [(r.strip(), h.strip()) for r, h in zip(references, hypotheses, strict=True)]
    spoken = [(r, h) for r, h in pairs if r]
    for _, hypothesis in (pair for pair in pairs if not pair[0]):  # jiwer refuses empty references
        total += ErrorCounts(insertions=len(hypothesis) if characters else len(hypothesis.split()))
    if spoken:
        process = jiwer.process_characters if characters else jiwer.process_words
        out = process([r for r, _ in spoken], [h for _, h in spoken])
        length = out.hits + out.substitutions + out.deletions
        total += ErrorCounts(out.substitutions, out.deletions, out.insertions, length)
    return total


def score(
    references: Sequence[str],
    hypotheses: Sequence[str],
    normalize: Normalizer | None = None,
    *,
    language: str = "en",
) -> Scores:
    """Count errors of paired texts; `normalize` defaults to Whisper's normaliser of the language.

    In a language without spaces, normalised characters are counted without spaces.
    """
    normalize = normalize or whisper_normalizer(language)
    clean = [[normalize(text) for text in texts] for texts in (references, hypotheses)]
    letters = [["".join(text.split()) for text in texts] for texts in clean] if is_unspaced(language) else clean
    return Scores(
        count_words(*clean),
        count_characters(*letters),
        count_words(references, hypotheses),
        len(references),
        count_characters(references, hypotheses),
    )
