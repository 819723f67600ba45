"""Tensor ids and the derivation of direction seeds."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zo_common.directions.seeds import MASK64, client_seed, direction_seed, fold_in, shared_seed, tensor_id

words = st.integers(0, MASK64)


def test_tensor_ids_of_the_vectors(golden: dict[str, Any]) -> None:
    assert {name: tensor_id(name) for name in golden["tensor_id"]} == golden["tensor_id"]


def test_fold_in_of_the_vectors(golden: dict[str, Any]) -> None:
    for case in golden["fold_in"]:
        assert fold_in(case["seed"], *case["data"]) == case["out"]


@given(words, st.lists(words, max_size=5))
def test_fold_in_is_personalised_blake2b_of_u64_words(seed: int, data: list[int]) -> None:
    packed = b"".join(struct.pack("<Q", word) for word in (seed, *data))
    expected = hashlib.blake2b(packed, digest_size=8, person=b"zo-asr/seed/v1").digest()

    assert fold_in(seed, *data) == int.from_bytes(expected, "little")


@pytest.mark.parametrize("arguments", [(-1,), (MASK64 + 1,), (0, -1), (0, 1, MASK64 + 1)])
def test_words_outside_u64_are_refused(arguments: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="outside"):
        fold_in(*arguments)


def test_round_and_query_seeds_are_nested_fold_ins() -> None:
    assert client_seed(42, 3, 17) == fold_in(42, 3, 17)
    assert shared_seed(42, 3) == fold_in(42, 3)
    assert direction_seed(client_seed(42, 3, 17), 1, 5) == fold_in(fold_in(42, 3, 17), 1, 5)


def test_no_two_directions_of_a_run_share_a_seed() -> None:
    seeds = [
        direction_seed(client_seed(42, server_round, client), step, query)
        for server_round in range(1, 5)
        for client in range(8)
        for step in range(4)
        for query in range(8)
    ]

    assert len(set(seeds)) == len(seeds)
