"""Word and character error rates as counts that can be summed over clients (jiwer), raw and normalised."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import jiwer

Normalizer = Callable[[str], str]


@dataclass(frozen=True)
class ErrorCounts:
    """Edit operations against `length` reference units (words or characters); add them, then take the rate."""

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
        """Errors by reference units; 0 for nothing against nothing, may exceed 1."""
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
    """Error counts of a set of utterances: words and characters normalised, words raw."""

    words: ErrorCounts = ErrorCounts()
    characters: ErrorCounts = ErrorCounts()
    raw_words: ErrorCounts = ErrorCounts()
    utterances: int = 0

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
        """Word error rate of the texts as they are."""
        return self.raw_words.rate

    def __add__(self, other: Scores) -> Scores:
        return Scores(
            self.words + other.words,
            self.characters + other.characters,
            self.raw_words + other.raw_words,
            self.utterances + other.utterances,
        )


@lru_cache(maxsize=2)
def whisper_normalizer(language: str = "en") -> Normalizer:
    """OpenAI's Whisper normaliser of a language, as published error rates use it.

    English has its own; every other language the basic one (Radford et al. 2022, appendix C), with the marks of letters
    kept: without them Hindi loses its vowels, and an error in a diacritic is none.

    Args:
        language: code ("en", "de", "zh") or English name, as `language` of a run.
    """
    from whisper_normalizer.basic import BasicTextNormalizer
    from whisper_normalizer.english import EnglishTextNormalizer

    normalize: Normalizer = (
        EnglishTextNormalizer() if is_english(language) else BasicTextNormalizer(preserve_marks=True)
    )
    return normalize


def is_english(language: str) -> bool:
    """Whether a language code or name, with or without a region, is English; an empty one is taken for it."""
    return re.split("[-_]", language.lower())[0] in ("", "en", "english")


def normalizer_name(language: str = "en") -> str:
    """What tables and results call `whisper_normalizer(language)`."""
    return "Whisper's English normaliser" if is_english(language) else "Whisper's basic normaliser, marks kept"


def count_words(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorCounts:
    """Word edit counts of paired texts; a reference without words counts every hypothesis word as an insertion."""
    return _count(references, hypotheses, characters=False)


def count_characters(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorCounts:
    """Character edit counts of paired texts."""
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
    """Counts of paired texts; `normalize` defaults to Whisper's normaliser of the language."""
    normalize = normalize or whisper_normalizer(language)
    clean_references = [normalize(r) for r in references]
    clean_hypotheses = [normalize(h) for h in hypotheses]
    return Scores(
        count_words(clean_references, clean_hypotheses),
        count_characters(clean_references, clean_hypotheses),
        count_words(references, hypotheses),
        len(references),
    )
