"""Philox4x32-10 against Random123's known answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zo_common.directions.philox import philox4x32

REPOSITORY = Path(__file__).parents[3]


def test_random123_known_answers(golden: dict[str, Any]) -> None:
    cases = golden["philox4x32_10"]
    assert len(cases) == 3
    for case in cases:
        counter = np.array([[int(word, 16) for word in case["ctr"]]], np.uint64)
        key = (int(case["key"][0], 16), int(case["key"][1], 16))

        (output,) = philox4x32(counter, key)

        assert [f"{word:08x}" for word in output] == case["out"]


def test_counters_are_encrypted_independently(golden: dict[str, Any]) -> None:
    counters = np.array([[7, 1, 2, 3], [0xFFFFFFFF, 0, 5, 9], [8, 1, 2, 3]], np.uint64)
    key = (0xDEADBEEF, 0x12345678)

    together = philox4x32(counters, key)

    alone = np.concatenate([philox4x32(row[None], key) for row in counters])
    np.testing.assert_array_equal(together, alone)
    assert together.dtype == np.uint32


def test_input_counter_is_left_alone() -> None:
    counter = np.array([[1, 2, 3, 4]], np.uint64)

    philox4x32(counter, (5, 6))

    np.testing.assert_array_equal(counter, [[1, 2, 3, 4]])


def test_golden_copy_equals_the_shared_vectors(golden: dict[str, Any]) -> None:
    shared = REPOSITORY.parent / "shared" / "vectors" / "exact_zo_v1.json"
    if not shared.exists():
        pytest.skip("no shared vectors beside the repository")

    assert json.loads(shared.read_text()) == golden
