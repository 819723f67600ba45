"""Labels of a character vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_ctc import CHARACTERS, write_tiny_ctc
from transformers import Wav2Vec2CTCTokenizer

from zo_common.models.ctc.text import ctc_labels


@pytest.fixture(scope="module")
def capitals(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tokenizer of capital letters, as Wav2Vec2-base-960h's."""
    from zo_common.models.load import load_model

    return load_model(str(write_tiny_ctc(tmp_path_factory.mktemp("ctc")))).processor.tokenizer


def _tokenizer(directory: Path, characters: list[str], **options: Any) -> Any:
    path = directory / "vocab.json"
    path.write_text(json.dumps({c: i for i, c in enumerate(characters)}))
    return Wav2Vec2CTCTokenizer(str(path), **options)


def _spell(text: str) -> list[int]:
    return [CHARACTERS.index(c) for c in text]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("THE CAT", "THE|CAT"),
        ("the cat", "THE|CAT"),
        ("  The -- cat, 9 \n", "THE|CAT"),
        ("a|b", "AB"),
        ("9 !", ""),
        ("", ""),
        ("<pad>", "PAD"),
    ],
)
def test_texts_are_spelled_in_the_case_the_vocabulary_has(capitals: Any, text: str, expected: str) -> None:
    assert ctc_labels(capitals, text, len(CHARACTERS)) == _spell(expected)


def test_equals_the_tokenizer_where_it_knows_every_character(capitals: Any) -> None:
    text = "THE CAT SITS ON A RED CARPET"

    assert ctc_labels(capitals, text, len(CHARACTERS)) == capitals(text).input_ids


def test_small_letters_alone(tmp_path: Path) -> None:
    tokenizer = _tokenizer(tmp_path, ["<pad>", "<s>", "</s>", "<unk>", "|", "é", "a"])

    assert ctc_labels(tokenizer, "É A", 7) == [5, 4, 6]


def test_both_cases_are_kept_apart(tmp_path: Path) -> None:
    tokenizer = _tokenizer(tmp_path, ["<pad>", "<s>", "</s>", "<unk>", "|", "a", "A"])

    assert ctc_labels(tokenizer, "aA Aa", 7) == [5, 6, 4, 6, 5]


def test_a_head_without_a_delimiter_joins_words(tmp_path: Path) -> None:
    tokenizer = _tokenizer(tmp_path, ["<pad>", "<s>", "</s>", "<unk>", "a"])

    assert ctc_labels(tokenizer, "a a", 5) == [4, 4]
