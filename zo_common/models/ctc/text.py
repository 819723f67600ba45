"""Texts → labels of a CTC vocabulary."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from zo_common.models.letter_case import has_turkish_case, turkish_lower, turkish_upper

# typographic variants of keyboard characters: replacing them loses no speech
_PLAIN = {
    **dict.fromkeys("’‘ʼʻ‛′´`ʹ＇", "'"),
    **dict.fromkeys("“”„‟«»″＂", '"'),
    **dict.fromkeys("‐‑‒–—―−", "-"),
    "…": "...",
    "ﬁ": "fi",
    "ﬂ": "fl",
}
_SHOWN = 10


class CTCVocabulary:
    """The output tokens of a CTC model, each of one or several characters.

    If a character vocabulary has letters of one case only (Wav2Vec2-base-960h: capitals), texts are converted to that
    case: the tokenizer alone would map letters of the other case to the unknown token.

    Args:
        tokenizer: a `Wav2Vec2CTCTokenizer`, or one of word pieces.
        classes: number of classes of the model's head; further tokens of the tokenizer count as unknown.
        fold_accents: whether an unknown letter is replaced by the letter without accents (é → e).
        language: of the texts, a code or English name; Turkish and Azerbaijani have letter pairs of their own if the
            vocabulary has their letters.
    """

    def __init__(self, tokenizer: Any, classes: int, *, fold_accents: bool = False, language: str = "") -> None:
        self._tokenizer, self._fold = tokenizer, fold_accents
        self._pieces = not hasattr(tokenizer, "word_delimiter_token")
        if self._pieces:
            return
        special = set(tokenizer.all_special_ids)
        self._space = tokenizer.word_delimiter_token
        self._tokens = {
            token: index
            for token, index in tokenizer.get_vocab().items()
            if index < classes and (index not in special or token == self._space)
        }
        self._longest = max((len(token) for token in self._tokens), default=1)
        letters = "".join(token for token in self._tokens if len(token) == 1)
        small, capital = any(map(str.islower, letters)), any(map(str.isupper, letters))
        turkish = has_turkish_case(language)
        self._cased: Callable[[str], str] = str  # if it has both cases
        if small and not capital:
            self._cased = turkish_lower if turkish and "ı" in letters else str.lower
        elif not small:
            self._cased = turkish_upper if turkish and "İ" in letters else str.upper

    def labels(self, text: str) -> tuple[list[int], Counter[str]]:
        """Return class ids, and the characters missing in the vocabulary, which are left out.

        Words are separated by the tokenizer's delimiter. Empty if no character is known.
        """
        return self._of_pieces(text) if self._pieces else self._of_characters(text)

    def _of_characters(self, text: str) -> tuple[list[int], Counter[str]]:
        labels: list[int] = []
        lacking: Counter[str] = Counter()
        for word in unicodedata.normalize("NFC", text).split():
            found = self._of_word(self._cased(word), lacking)
            if labels and found and self._space in self._tokens:
                labels.append(self._tokens[self._space])
            labels += found
        return labels, lacking

    def _of_word(self, word: str, lacking: Counter[str]) -> list[int]:
        """Return the longest tokens from the left, as the tokenizer itself splits."""
        labels: list[int] = []
        place = 0
        while place < len(word):
            sizes = range(min(self._longest, len(word) - place), 0, -1)
            token = next((word[place : place + n] for n in sizes if word[place : place + n] in self._tokens), "")
            if token and token != self._space:
                labels.append(self._tokens[token])
                place += len(token)
                continue
            plain = self._written_otherwise(word[place])
            labels += [self._tokens[c] for c in plain]
            if not plain:
                lacking[word[place]] += 1
            place += 1
        return labels

    def _written_otherwise(self, character: str) -> str:
        """Return the same in characters that are known, or nothing."""
        found = self._plain(character)
        return found if all(c in self._tokens and c != self._space for c in found) else ""

    def _plain(self, character: str) -> str:
        """Return a keyboard's form of a character, or with `fold_accents` its letter; else nothing."""
        found = _PLAIN.get(character, "")
        if found or not self._fold:
            return found
        return "".join(c for c in unicodedata.normalize("NFKD", character) if not unicodedata.combining(c))

    def _of_pieces(self, text: str) -> tuple[list[int], Counter[str]]:
        """As the tokenizer itself splits; where it gives an unknown piece, each of its characters is looked at."""
        unknown = self._tokenizer.unk_token_id

        def encode(part: str) -> list[int]:
            return [int(i) for i in self._tokenizer(part, add_special_tokens=False).input_ids]

        text = unicodedata.normalize("NFC", text)
        labels, lacking = encode(text), Counter[str]()
        if unknown is None or unknown not in labels:
            return labels, lacking
        known: dict[str, str] = {}
        for character in set(text):
            known[character] = character
            if unknown in encode(character):
                plain = self._plain(character)
                known[character] = plain if plain and unknown not in encode(plain) else ""
        lacking.update(c for c in text if not known[c] and not c.isspace())
        return [i for i in encode("".join(known[c] for c in text)) if i != unknown], lacking


def ctc_labels(tokenizer: Any, text: str, classes: int) -> list[int]:
    """Return the labels of one text; see `CTCVocabulary`."""
    return CTCVocabulary(tokenizer, classes).labels(text)[0]


def left_out_sentence(lacking: Iterable[Counter[str]]) -> str:
    """Return a sentence on the characters that labels leave out; empty where there are none."""
    total: Counter[str] = Counter()
    for counts in lacking:
        total.update(counts)
    if not total:
        return ""
    shown = ", ".join(f"{c} {n}" for c, n in total.most_common(_SHOWN)) + (" …" if len(total) > _SHOWN else "")
    return f"labels leave out {total.total()} characters that the model's vocabulary lacks: {shown}"
