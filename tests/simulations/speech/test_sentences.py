"""The sentence grammar: distinct, deterministic, well formed and disjoint between splits."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulations.speech import sentences as grammar
from simulations.speech.sentences import sentence_key, sentences, split_sentences
from zo_common.errors import ConfigError

SEEDS = st.integers(min_value=0, max_value=2**63)
COUNTS = st.integers(min_value=0, max_value=120)


@settings(deadline=None, max_examples=25)
@given(count=COUNTS, seed=SEEDS)
def test_count_distinct_and_repeatable(count: int, seed: int) -> None:
    found = sentences(count, seed)
    assert len({sentence_key(sentence) for sentence in found}) == len(found) == count
    assert sentences(count, seed) == found
    assert sentences(count + 7, seed)[:count] == found


@settings(deadline=None, max_examples=25)
@given(train=COUNTS, dev=COUNTS, test=COUNTS, seed=SEEDS)
def test_splits_are_disjoint(train: int, dev: int, test: int, seed: int) -> None:
    splits = split_sentences(train, dev, test, seed)
    assert [len(split) for split in splits] == [train, dev, test]
    keys = [sentence_key(sentence) for split in splits for sentence in split]
    assert len(set(keys)) == len(keys)


def test_sentences_read_like_a_transcript() -> None:
    for sentence in sentences(4000, seed=1):
        assert re.fullmatch(r"[A-Z][A-Za-z, ]*[.?]", sentence), sentence
        assert 4 <= len(sentence.split()) <= 14, sentence
        assert "  " not in sentence
        assert " ," not in sentence
    questions = [sentence for sentence in sentences(500, seed=1) if sentence.endswith("?")]
    assert 100 < len(questions) < 400


def test_no_article_or_word_is_doubled() -> None:
    for sentence in sentences(4000, seed=2):
        words = sentence_key(sentence).split()
        assert all(first != second for first, second in pairwise(words)), sentence
        assert not re.search(r"\b(a [aeio]|an [^aeiouh]|(a|the|some) (a|an|the|some)\b)", sentence.lower()), sentence


def test_vocabulary_is_wide_and_templates_balanced() -> None:
    words = Counter(word for sentence in sentences(1000, seed=3) for word in sentence_key(sentence).split())
    assert len(words) > 500
    openings = Counter(" ".join(sentence.split()[:2]) for sentence in sentences(1000, seed=3))
    assert max(openings.values()) < 100


def test_every_slot_is_known_and_used() -> None:
    fields = {field for template in grammar._templates() for field in re.findall(r"\{(\w+)\}", template)}
    assert all(len(grammar._fillings(field)) >= 4 for field in fields)
    used = {field if field in grammar._DERIVED else field.rstrip("0123456789") for field in fields}
    assert used == {*grammar._SLOTS, *grammar._DERIVED}


def test_seeds_differ() -> None:
    assert sentences(50, seed=1) != sentences(50, seed=2)


def test_independent_of_the_hash_seed() -> None:
    code = "from simulations.speech.sentences import sentences; print(sentences(200, 5))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": value}, capture_output=True, check=True
        ).stdout
        for value in ("1", "2")
    }
    assert len(outputs) == 1


def test_key_ignores_case_punctuation_and_spaces() -> None:
    assert sentence_key(" Stop,  the Music.") == sentence_key("stop the music!")


@pytest.mark.parametrize("count", [-1, 10**6])
def test_impossible_counts_are_refused(count: int) -> None:
    with pytest.raises(ConfigError, match=str(count)):
        sentences(count, seed=0)


def test_negative_split_is_refused() -> None:
    with pytest.raises(ConfigError, match="dev"):
        split_sentences(10, -5, 10, seed=0)
