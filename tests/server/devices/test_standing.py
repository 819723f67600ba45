"""Who is asked again and when: back-off doubles, a valid answer forgives, drift after a rebuild excludes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from server.devices.standing import Standings


def _rounds_asked(standings: Standings, last: int) -> list[int]:
    """Rounds in which client 1 is asked if it fails each time."""
    asked = []
    for server_round in range(1, last + 1):
        if standings.may_be_asked(1, server_round):
            asked.append(server_round)
            standings.failed(1, server_round, "no-answer", "silent")
    return asked


def test_a_device_that_keeps_failing_is_asked_more_and_more_seldom() -> None:
    # three in a row are borne, then 1, 2, 4, 8, 16, 32 and again 32 rounds are skipped
    assert _rounds_asked(Standings(), 140) == [1, 2, 3, 5, 8, 13, 22, 39, 72, 105, 138]


def test_a_valid_answer_forgives_failures() -> None:
    standings = Standings()
    for server_round in (1, 2, 3):
        standings.failed(1, server_round, "client-error", "no disk")
    assert not standings.may_be_asked(1, 4)

    standings.answered(1, 5)

    assert standings.may_be_asked(1, 6)
    standings.failed(1, 6, "client-error", "no disk")
    assert standings.may_be_asked(1, 7)


@pytest.mark.parametrize("reason", ["late", "duplicate"])
def test_what_is_not_its_fault_costs_no_round(reason: str) -> None:
    standings = Standings()
    for server_round in range(1, 20):
        standings.failed(1, server_round, reason, "a word")

    assert standings.may_be_asked(1, 20)
    assert standings.of(1).refused == {reason: 19}


def test_the_second_drift_in_a_row_excludes() -> None:
    standings = Standings()

    assert standings.drifted(1)
    assert standings.drifted(1)  # it was told, but did not say that it has rebuilt
    standings.rebuilt(1)
    assert standings.may_be_asked(1, 2)
    assert not standings.drifted(1)
    assert not standings.may_be_asked(1, 10_000)
    assert "after a rebuild" in standings.of(1).word


def test_a_good_answer_between_two_drifts_is_a_new_start() -> None:
    standings = Standings()

    assert standings.drifted(1)
    standings.rebuilt(1)
    standings.answered(1, 7)
    assert standings.drifted(1)
    assert standings.may_be_asked(1, 8)


def test_devices_json(tmp_path: Path) -> None:
    standings = Standings()
    standings.answered(2, 6)
    standings.of(2).payload_up += 82
    for server_round in (4, 5, 6):
        standings.failed(1, server_round, "malformed", "client 1: garbage")
    standings.drifted(3)
    standings.rebuilt(3)
    standings.drifted(3)

    standings.save(tmp_path, 6)

    told = json.loads((tmp_path / "devices.json").read_text())
    assert told["server_round"] == 6
    one, two, three = told["devices"]
    assert (one["standing"], one["until_round"], one["refused"]) == ("backing-off", 8, {"malformed": 3})
    assert one["word"] == "client 1: garbage"
    assert (two["standing"], two["have_round"], two["last_seen_round"], two["payload_up"]) == ("ok", 5, 6, 82)
    assert three["standing"] == "excluded"


def test_a_resumed_server_asks_the_same_devices(tmp_path: Path) -> None:
    standings = Standings()
    for server_round in (1, 2, 3):
        standings.failed(1, server_round, "malformed", "garbage")
    standings.rebuilt(2)
    assert not standings.drifted(2)
    standings.save(tmp_path, 3)
    again = Standings()

    again.load(tmp_path, 3)

    assert [again.may_be_asked(client, 4) for client in (1, 2, 3)] == [False, False, True]
    assert again.of(1) == standings.of(1)
    assert again.of(2) == standings.of(2)


@pytest.mark.parametrize("content", ["", "[]", '{"server_round": 3, "devices": [{"standing": "ok", "what": 1}]}', None])
def test_what_cannot_be_read_is_left_alone(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "devices.json").write_text(content)
    standings = Standings()

    standings.load(tmp_path, 3)

    assert standings.may_be_asked(1, 1)


def test_a_ledger_that_lost_rounds_does_not_take_up_what_came_after(tmp_path: Path) -> None:
    standings = Standings()
    standings.rebuilt(1)
    standings.drifted(1)
    standings.save(tmp_path, 9)
    again = Standings()

    again.load(tmp_path, 8)

    assert again.may_be_asked(1, 9)
