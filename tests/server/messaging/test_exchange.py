"""How plans are handed over and answers looked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from fake_grid import FakeGrid
from flwr.app import Message

from server.messaging import exchange
from server.messaging.exchange import pause
from zo_common.config.run import RunConfig

Settings = Callable[..., RunConfig]


@pytest.mark.parametrize(
    ("took", "seconds"), [(0.0, 0.2), (0.01, 0.2), (0.05, 0.5), (0.1, 1.0), (0.5, 2.0), (60.0, 2.0)]
)
def test_looking_for_answers_takes_a_tenth_of_the_time_at_most(took: float, seconds: float) -> None:
    assert pause(took) == pytest.approx(seconds)


def test_plans_are_handed_over_in_slices_of_bounded_size(
    settings: Settings,
    grid_of: Callable[..., FakeGrid],
    federate: Callable[..., Any],
    observed: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = settings(num_server_rounds=1)
    grid = grid_of(config)
    pushed: list[int] = []
    push = grid.push_messages

    def count(messages: Iterable[Message]) -> Iterable[str]:
        pushed.append(len(messages := list(messages)))
        return push(messages)

    monkeypatch.setattr(grid, "push_messages", count)
    monkeypatch.setattr(exchange, "PUSH_BYTES", 100)  # the third plan of 59 bytes begins another slice

    federate(config, grid)

    assert pushed[-2:] == [2, 1]
    assert [(r.asked, r.answered) for r in observed.reports] == [(3, 3)]
    assert observed.reports[0].down.payload == 3 * 59
