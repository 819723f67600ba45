"""Distribution of a transcript over the pieces of its recording, by a model's transcript of each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import jiwer

from zo_common.speech.metrics import is_unspaced, whisper_normalizer

_WORD = re.compile(r"\s*\S+")


class Words:
    """A text in units that can be joined without loss: words, or characters in a language without spaces.

    Attributes:
        tokens: the units after the language's normaliser, without empty ones.
        ends: for each token, the number of units up to and including its own.
    """

    def __init__(self, text: str, language: str) -> None:
        self._units = list(text) if is_unspaced(language) else _WORD.findall(text)
        self.tokens: list[str] = []
        self.ends: list[int] = []
        for number, unit in enumerate(self._units, 1):
            for token in _normalized(unit, language):
                self.tokens.append(token)
                self.ends.append(number)

    def __len__(self) -> int:
        return len(self._units)

    def text(self, start: int, end: int) -> str:
        """Return the text of the units from `start` to before `end`."""
        return "".join(self._units[start:end]).strip()


@lru_cache(maxsize=65536)
def _normalized(unit: str, language: str) -> tuple[str, ...]:
    return tuple(whisper_normalizer(language)(unit).split())


def sure_spans(reference: Words, hypotheses: Sequence[Sequence[str]]) -> list[tuple[int, int] | None]:
    """Return for each piece the range of units that surely belong to it, first and one past the last; else None.

    The transcripts of all pieces are aligned with the text (Levenshtein); a token that is equal in both surely belongs
    to its piece.

    Args:
        hypotheses: tokens of each piece's transcript, normalised as those of `reference`.
    """
    found: list[tuple[int, int] | None] = [None] * len(hypotheses)
    for at, piece in enumerate(_sure_pieces(reference.tokens, hypotheses)):
        if piece is not None:
            span = found[piece]
            found[piece] = (reference.ends[at] - 1 if span is None else span[0], reference.ends[at])
    return found


def _sure_pieces(tokens: Sequence[str], hypotheses: Sequence[Sequence[str]]) -> list[int | None]:
    """Return for each token of the text the piece whose transcript has an equal token aligned with it."""
    owners = [piece for piece, each in enumerate(hypotheses) for _ in each]
    sure: list[int | None] = [None] * len(tokens)
    if tokens and owners:
        found = jiwer.process_words(" ".join(tokens), " ".join(token for each in hypotheses for token in each))
        for part in found.alignments[0]:
            if part.type == "equal":
                sure[part.ref_start_idx : part.ref_end_idx] = owners[part.hyp_start_idx : part.hyp_end_idx]
    return sure


def agreement(reference: Sequence[str], hypothesis: Sequence[str]) -> float:
    """Return the share of aligned equal tokens, relative to the longer text; 1 if both are empty."""
    if not reference or not hypothesis:
        return float(not reference and not hypothesis)
    return jiwer.process_words(" ".join(reference), " ".join(hypothesis)).hits / max(len(reference), len(hypothesis))
