"""Labels of a character vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_ctc import CHARACTERS, write_tiny_ctc
from tiny_models import piece_tokenizer
from transformers import ParakeetTokenizer, Wav2Vec2CTCTokenizer

from zo_common.models.ctc.text import CTCVocabulary, ctc_labels, left_out_sentence


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


@pytest.mark.parametrize(
    ("letters", "language", "text", "expected"),
    [
        ("ışkity", "tr", "IŞIK İyi", "ışık|iyi"),
        ("ışkity", "Turkish", "I\u015eIK I\u0307yi", "ışık|iyi"),  # İ of two characters
        ("ışkity", "en", "KIT", "kit"),
        ("IŞKİTY", "az-AZ", "ışık iyi", "IŞIK|İYİ"),
        ("ISKTY", "tr", "kit", "KIT"),  # a vocabulary without its letters
        ("skity", "tr", "KİT", "kit"),
    ],
)
def test_turkish_letters_have_their_own_case(
    tmp_path: Path, letters: str, language: str, text: str, expected: str
) -> None:
    tokens = ["<pad>", "<s>", "</s>", "<unk>", "|", *letters]

    labels, _ = CTCVocabulary(_tokenizer(tmp_path, tokens), len(tokens), language=language).labels(text)

    assert "".join(tokens[label] for label in labels) == expected


def test_both_cases_are_kept_apart(tmp_path: Path) -> None:
    tokenizer = _tokenizer(tmp_path, ["<pad>", "<s>", "</s>", "<unk>", "|", "a", "A"])

    assert ctc_labels(tokenizer, "aA Aa", 7) == [5, 6, 4, 6, 5]


def test_a_head_without_a_delimiter_joins_words(tmp_path: Path) -> None:
    tokenizer = _tokenizer(tmp_path, ["<pad>", "<s>", "</s>", "<unk>", "a"])

    assert ctc_labels(tokenizer, "a a", 5) == [4, 4]


def test_tokens_of_several_characters_are_labels_as_the_tokenizer_takes_them(tmp_path: Path) -> None:
    tokens = ["<pad>", "<s>", "</s>", "<unk>", "|", "AA", "CH", "SH", "TH", "G", "H", "I", "N", "S", "T", "NG"]
    tokenizer = _tokenizer(tmp_path, tokens)

    labels, lacking = CTCVocabulary(tokenizer, len(tokens)).labels("Thing chaas")

    assert [tokens[i] for i in labels] == ["TH", "I", "NG", "|", "CH", "AA", "S"]
    assert labels[:3] == tokenizer("THING").input_ids  # behind such a token it would swallow the delimiter
    assert not lacking


def test_what_the_vocabulary_lacks_is_counted_and_what_keyboards_have_is_written(tmp_path: Path) -> None:
    tokenizer = _tokenizer(tmp_path, ["<pad>", "<s>", "</s>", "<unk>", "|", "a", "e", "'", "-"])
    vocabulary = CTCVocabulary(tokenizer, 9)

    labels, lacking = vocabulary.labels("a’e – ée 77 ｅ́!")

    assert labels == tokenizer("a'e - e").input_ids
    assert lacking == {"é": 1, "7": 2, "ｅ": 1, "\u0301": 1, "!": 1}
    assert CTCVocabulary(tokenizer, 9, fold_accents=True).labels("ée è") == (tokenizer("ee e").input_ids, {})
    assert left_out_sentence([lacking, lacking]) == (
        "labels leave out 12 characters that the model's vocabulary lacks: 7 4, é 2, ｅ 2, \u0301 2, ! 2"
    )
    assert left_out_sentence([]) == ""


def test_word_pieces_are_the_tokenizers_own(tmp_path: Path) -> None:
    tokenizer = piece_tokenizer(ParakeetTokenizer)

    labels, lacking = CTCVocabulary(tokenizer, len(tokenizer)).labels("can’t 5")

    assert labels == tokenizer("can't ").input_ids
    assert lacking == {"5": 1}
    assert CTCVocabulary(tokenizer, len(tokenizer), fold_accents=True).labels("é")[0] == tokenizer("e").input_ids
