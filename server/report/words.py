"""Words that adaptation mended or broke, from alignments of transcripts with their references."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jiwer

from zo_common.speech.metrics import is_unspaced, whisper_normalizer

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class AlignedTranscript:
    """A normalised transcript against its reference.

    Attributes:
        words: of the reference, or characters in a language without spaces.
        instead: what was transcribed for each; the word itself where it is right, "" where nothing was.
        marked: the transcript's words, and whether each is right.
    """

    words: tuple[str, ...]
    instead: tuple[str, ...]
    marked: tuple[tuple[str, bool], ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """The words for which nothing was transcribed."""
        return tuple(word for word, transcribed in zip(self.words, self.instead, strict=True) if not transcribed)

    @property
    def errors(self) -> int:
        """Words that were left out, written otherwise or written where there are none."""
        return len(self.missing) + sum(not right for _, right in self.marked)


@dataclass
class WordChange:
    """Count of how often a word was mended or broken.

    Attributes:
        of: occurrences in the references.
        transcribed: what was transcribed where it was wrong, most frequent first; "" stands for nothing.
    """

    word: str
    count: int = 0
    of: int = 0
    transcribed: Counter[str] = field(default_factory=Counter)


def align(reference: str, hypothesis: str, language: str = "en") -> AlignedTranscript:
    """Align a transcript with its reference after the language's normaliser, as error rates are counted."""
    ours, theirs = (_units(text, language) for text in (reference, hypothesis))
    if not ours:
        return AlignedTranscript((), (), tuple((word, False) for word in theirs))
    found = jiwer.process_words(" ".join(ours), " ".join(theirs))
    instead, right = [""] * len(ours), [False] * len(theirs)
    for chunk in found.alignments[0]:
        for place in range(chunk.ref_end_idx - chunk.ref_start_idx):
            if chunk.type in ("equal", "substitute"):
                there = chunk.hyp_start_idx + place
                instead[chunk.ref_start_idx + place] = theirs[there]
                right[there] = chunk.type == "equal"
    return AlignedTranscript(tuple(ours), tuple(instead), tuple(zip(theirs, right, strict=True)))


def _units(text: str, language: str) -> list[str]:
    words = whisper_normalizer(language)(text).split()
    return list("".join(words)) if is_unspaced(language) else words


def changed_words(
    before: Rows, after: Rows, language: str, most: int = 15
) -> tuple[list[WordChange], list[WordChange]]:
    """Return the words most often mended, and those most often broken.

    A word is mended where it was wrong before and is right after; what was transcribed is that before. Broken words are
    the reverse.

    Args:
        before, after: rows with `reference` and `hypothesis` of the same utterances in the same order.
        most: words in each list.
    """
    of: Counter[str] = Counter()
    mended: defaultdict[str, Counter[str]] = defaultdict(Counter)
    broken: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for word, was, now in _pairs(before, after, language):
        of[word] += 1
        if was != word and now == word:
            mended[word][was] += 1
        elif was == word and now != word:
            broken[word][now] += 1
    return _top(mended, of, most), _top(broken, of, most)


def _pairs(before: Rows, after: Rows, language: str) -> Iterator[tuple[str, str, str]]:
    """Yield each word of the references, what was transcribed before, and what after."""
    for first, last in zip(before, after, strict=True):
        was = align(first["reference"], first["hypothesis"], language)
        now = align(last["reference"], last["hypothesis"], language)
        yield from zip(was.words, was.instead, now.instead, strict=True)


def _top(found: Mapping[str, Counter[str]], of: Counter[str], most: int) -> list[WordChange]:
    changes = [WordChange(word, transcribed.total(), of[word], transcribed) for word, transcribed in found.items()]
    return sorted(changes, key=lambda each: (-each.count, each.word))[:most]
