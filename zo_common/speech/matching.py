"""A transcript shared out among the pieces of its recording, by what a model hears in each of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import jiwer

from zo_common.speech.metrics import is_unspaced, whisper_normalizer

_WORD = re.compile(r"\s*\S+")


class Words:
    """A text in units that are put together again without a loss: words, or characters where there are no spaces.

    Attributes:
        tokens: the units after the language's normaliser, without those that it leaves nothing of.
        ends: for each token, how many units are up to and with its own.
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
        """The units from `start` on, up to and without `end`."""
        return "".join(self._units[start:end]).strip()


@lru_cache(maxsize=65536)
def _normalized(unit: str, language: str) -> tuple[str, ...]:
    return tuple(whisper_normalizer(language)(unit).split())


def sure_spans(said: Words, heard: Sequence[Sequence[str]]) -> list[tuple[int, int] | None]:
    """The units of a text, first and one past the last, that are sure to be of each piece; None where none is.

    What was heard in all pieces is aligned with what was said (Levenshtein), and a token that is the same in both is
    sure to be of its piece.

    Args:
        heard: tokens of each piece, normalised as those of `said` are.
    """
    found: list[tuple[int, int] | None] = [None] * len(heard)
    for at, piece in enumerate(_sure_pieces(said.tokens, heard)):
        if piece is not None:
            span = found[piece]
            found[piece] = (said.ends[at] - 1 if span is None else span[0], said.ends[at])
    return found


def _sure_pieces(tokens: Sequence[str], heard: Sequence[Sequence[str]]) -> list[int | None]:
    """For each token of what was said, the piece in which the same was heard at its place."""
    owners = [piece for piece, each in enumerate(heard) for _ in each]
    sure: list[int | None] = [None] * len(tokens)
    if tokens and owners:
        found = jiwer.process_words(" ".join(tokens), " ".join(token for each in heard for token in each))
        for part in found.alignments[0]:
            if part.type == "equal":
                sure[part.ref_start_idx : part.ref_end_idx] = owners[part.hyp_start_idx : part.hyp_end_idx]
    return sure


def agreement(said: Sequence[str], heard: Sequence[str]) -> float:
    """Share of the tokens that are the same in both and at one place, of the longer of them; 1 where both are empty."""
    if not said or not heard:
        return float(not said and not heard)
    return jiwer.process_words(" ".join(said), " ".join(heard)).hits / max(len(said), len(heard))
