"""The floor's messages are as long as ours."""

from __future__ import annotations

import pytest

from benchmarks.cost.traffic import ours
from benchmarks.scale.floor import Sizes


@pytest.mark.parametrize(("steps", "queries", "devices"), [(1, 8, 10), (10, 8, 100), (2, 3, 5)])
def test_sizes_are_those_of_encoded_messages(steps: int, queries: int, devices: int) -> None:
    sizes, real = Sizes(devices, steps * queries), ours(steps, queries, devices)
    assert (sizes.plan, sizes.reply) == (real.payload_down, real.payload_up)


def test_sizes_by_hand() -> None:
    # plan, length and head of its record, contributions; reply and its scalars
    sizes = Sizes(devices=3, scalars=8)
    assert (sizes.plan, sizes.reply) == (59 + 4 + 16 + 3 * (20 + 32), 51 + 32)
