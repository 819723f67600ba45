"""Texts → labels of a character vocabulary."""

from __future__ import annotations

from typing import Any


def ctc_labels(tokenizer: Any, text: str, classes: int) -> list[int]:
    """The characters of a text as labels; those that the vocabulary lacks, such as punctuation, are left out.

    Where the vocabulary has letters of one case alone (Wav2Vec2-base-960h: capitals), the text is turned into that
    case: the tokenizer by itself would make every letter of the other an unknown one.

    Args:
        tokenizer: a `Wav2Vec2CTCTokenizer`.
        classes: of the model's head, `config.vocab_size`; tokens that the tokenizer has beyond them are unknown too.

    Returns:
        Class numbers, words separated by the tokenizer's delimiter; empty if no character is known.
    """
    vocabulary = tokenizer.get_vocab()
    special = set(tokenizer.all_special_ids)
    space = tokenizer.word_delimiter_token
    known = {c: i for c, i in vocabulary.items() if i < classes}
    letters = {c: i for c, i in known.items() if len(c) == 1 and (i not in special or c == space)}
    if not any(c.islower() for c in letters):
        text = text.upper()
    elif not any(c.isupper() for c in letters):
        text = text.lower()
    words = ([letters[c] for c in word if c in letters and c != space] for word in text.split())
    labels: list[int] = []
    for word in filter(None, words):
        if labels and space in letters:
            labels.append(letters[space])
        labels += word
    return labels
