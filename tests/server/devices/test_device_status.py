"""Who is asked again and when: back-off doubles, a valid answer forgives, drift after a rebuild excludes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from server.devices.device_status import DeviceStatuses


def _rounds_asked(statuses: DeviceStatuses, last: int) -> list[int]:
    """Rounds in which client 1 is asked if it fails each time."""
    asked = []
    for server_round in range(1, last + 1):
        if statuses.may_be_asked(1, server_round):
            asked.append(server_round)
            statuses.failed(1, server_round, "no-answer", "silent")
    return asked


def test_a_device_that_keeps_failing_is_asked_more_and_more_seldom() -> None:
    # three in a row are borne, then 1, 2, 4, 8, 16, 32 and again 32 rounds are skipped
    assert _rounds_asked(DeviceStatuses(), 140) == [1, 2, 3, 5, 8, 13, 22, 39, 72, 105, 138]


def test_a_valid_answer_forgives_failures() -> None:
    statuses = DeviceStatuses()
    for server_round in (1, 2, 3):
        statuses.failed(1, server_round, "client-error", "no disk")
    assert not statuses.may_be_asked(1, 4)

    statuses.answered(1, 5)

    assert statuses.may_be_asked(1, 6)
    statuses.failed(1, 6, "client-error", "no disk")
    assert statuses.may_be_asked(1, 7)


@pytest.mark.parametrize("reason", ["late", "duplicate"])
def test_what_is_not_its_fault_costs_no_round(reason: str) -> None:
    statuses = DeviceStatuses()
    for server_round in range(1, 20):
        statuses.failed(1, server_round, reason, "a word")

    assert statuses.may_be_asked(1, 20)
    assert statuses.of(1).refused == {reason: 19}


def test_the_second_drift_in_a_row_excludes() -> None:
    statuses = DeviceStatuses()

    assert statuses.drifted(1)
    assert statuses.drifted(1)  # it was told, but did not say that it has rebuilt
    statuses.rebuilt(1)
    assert statuses.may_be_asked(1, 2)
    assert not statuses.drifted(1)
    assert not statuses.may_be_asked(1, 10_000)
    assert "after a rebuild" in statuses.of(1).word


def test_a_good_answer_between_two_drifts_is_a_new_start() -> None:
    statuses = DeviceStatuses()

    assert statuses.drifted(1)
    statuses.rebuilt(1)
    statuses.answered(1, 7)
    assert statuses.drifted(1)
    assert statuses.may_be_asked(1, 8)


def test_devices_json(tmp_path: Path) -> None:
    statuses = DeviceStatuses()
    statuses.answered(2, 6)
    statuses.of(2).payload_up += 82
    for server_round in (4, 5, 6):
        statuses.failed(1, server_round, "malformed", "client 1: garbage")
    statuses.drifted(3)
    statuses.rebuilt(3)
    statuses.drifted(3)

    statuses.save(tmp_path, 6)

    told = json.loads((tmp_path / "devices.json").read_text())
    assert told["server_round"] == 6
    one, two, three = told["devices"]
    assert (one["standing"], one["until_round"], one["refused"]) == ("backing-off", 8, {"malformed": 3})
    assert one["word"] == "client 1: garbage"
    assert (two["standing"], two["have_round"], two["last_seen_round"], two["payload_up"]) == ("ok", 5, 6, 82)
    assert three["standing"] == "excluded"


def test_a_resumed_server_asks_the_same_devices(tmp_path: Path) -> None:
    statuses = DeviceStatuses()
    for server_round in (1, 2, 3):
        statuses.failed(1, server_round, "malformed", "garbage")
    statuses.rebuilt(2)
    assert not statuses.drifted(2)
    statuses.save(tmp_path, 3)
    again = DeviceStatuses()

    again.load(tmp_path, 3)

    assert [again.may_be_asked(client, 4) for client in (1, 2, 3)] == [False, False, True]
    assert again.of(1) == statuses.of(1)
    assert again.of(2) == statuses.of(2)


@pytest.mark.parametrize("content", ["", "[]", '{"server_round": 3, "devices": [{"standing": "ok", "what": 1}]}', None])
def test_what_cannot_be_read_is_left_alone(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "devices.json").write_text(content)
    statuses = DeviceStatuses()

    statuses.load(tmp_path, 3)

    assert statuses.may_be_asked(1, 1)


def test_a_ledger_that_lost_rounds_does_not_take_up_what_came_after(tmp_path: Path) -> None:
    statuses = DeviceStatuses()
    statuses.rebuilt(1)
    statuses.drifted(1)
    statuses.save(tmp_path, 9)
    again = DeviceStatuses()

    again.load(tmp_path, 8)

    assert again.may_be_asked(1, 9)
