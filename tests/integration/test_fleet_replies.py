"""Answers that arrive twice, late or in any order leave the ledger as it would be.

Flower's own processes deliver each answer once, so the transport here is the in-memory grid of `tests/helpers`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_grid import FakeGrid, Memory
from flwr.app import Message

from server.rounds.federation import Federation
from zo_common.config.run import RunConfig
from zo_common.ledger.ledger import Ledger
from zo_common.ledger.record_codec import encode_record

Settings = Callable[..., RunConfig]
Federate = Callable[..., Federation]
Ledgers = Callable[[RunConfig], Ledger]
ROUNDS = 3


class Unruly(FakeGrid):
    """Holds answers back for a while, gives each `copies` times, and never in the order of the questions."""

    def __init__(self, config: RunConfig, memories: list[Memory], seed: int, copies: int) -> None:
        super().__init__(config, memories)
        self._draw = random.Random(seed)
        self._copies = copies
        self._given: list[Message] = []

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        fresh = list(super().pull_messages(message_ids))
        self._given += fresh
        found = [message for message in fresh for _ in range(self._copies)]
        if self._copies > 1 and fresh:  # and one of any earlier round once more
            found.append(self._draw.choice(self._given))
        self._draw.shuffle(found)
        return found


@pytest.fixture
def undisturbed(settings: Settings, federate: Federate, ledger_of: Ledgers, tmp_path: Path) -> list[bytes]:
    """The rounds of a run in which all arrives once and in order."""
    config = settings(num_server_rounds=ROUNDS, output=str(tmp_path / "undisturbed"))
    federate(config)
    return [encode_record(record) for record in ledger_of(config).records]


@pytest.mark.parametrize("seed", range(2))
def test_the_order_of_answers_does_not_matter(
    settings: Settings,
    federate: Federate,
    ledger_of: Ledgers,
    memories: list[Memory],
    undisturbed: list[bytes],
    seed: int,
) -> None:
    config = settings(num_server_rounds=ROUNDS)

    federate(config, Unruly(config, memories, seed, copies=1))

    assert [encode_record(record) for record in ledger_of(config).records] == undisturbed


@pytest.mark.parametrize("copies", [2, 3])
def test_answers_that_come_again_count_once(
    settings: Settings,
    federate: Federate,
    ledger_of: Ledgers,
    memories: list[Memory],
    observed: Any,
    undisturbed: list[bytes],
    copies: int,
) -> None:
    config = settings(num_server_rounds=ROUNDS)

    federation = federate(config, Unruly(config, memories, 5, copies))

    assert [encode_record(record) for record in ledger_of(config).records] == undisturbed
    reports = observed.reports[-ROUNDS:]
    assert [(r.asked, r.answered) for r in reports] == [(3, 3)] * ROUNDS
    refused = sum((r.refused for r in reports), Counter())
    assert refused["duplicate"] >= 3 * (copies - 1) * ROUNDS
    assert all(federation.statuses.of(client).failures == 0 for client in range(3))  # it is not the devices' fault


def test_an_answer_of_an_earlier_round_is_refused(
    settings: Settings, federate: Federate, ledger_of: Ledgers, memories: list[Memory], observed: Any
) -> None:
    config = replace(settings(num_server_rounds=ROUNDS), lr_schedule="constant")
    grid = FakeGrid(config, memories)
    said: list[bytes] = []

    def repeat_the_first(server_round: int, payload: bytes) -> bytes:
        said.append(payload)
        return said[0]

    grid[1].after = repeat_the_first

    federate(config, grid)

    clients = [[c.client_id for c in record.contributions] for record in ledger_of(config).records]
    assert clients[0] == [0, 1, 2]
    assert all(1 not in present for present in clients[1:])
    assert observed.reports[1].refused["wrong-round"] == 1
