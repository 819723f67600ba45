"""Attack: the server sets the terms that are to protect a device against it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from secure_worker import Sum, Victim

from client.worker.client import WorkerError
from zo_common.secure_sum.messages import Sharers, agreement
from zo_common.wire.plan import Status, decode_reply


@pytest.fixture
def victim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Victim]:
    made = Victim(tmp_path, monkeypatch, signed=True)
    yield made
    made.close()


def test_a_threshold_at_which_a_colluder_opens_both_masks(victim: Victim) -> None:
    with pytest.raises(WorkerError, match=r"secure-threshold is 0\.5, this device has peers\.keys and expects"):
        victim.step(Sum(victim, (), threshold=0.5).server.invitation())


def test_few_neighbours_whom_the_server_has_chosen(victim: Victim) -> None:
    attacked = Sum(victim, (), neighbours=4)
    with pytest.raises(WorkerError, match=r"would mask with 4 of 9 others.*set secure-neighbours=0"):
        _share_of_many(victim, attacked)


def _share_of_many(victim: Victim, attacked: Sum) -> None:
    from secure_cohort import keys_of

    from zo_common.secure_sum.device import SecureDevice

    signers, _ = keys_of(range(10))
    server = attacked.server
    server.add_advertisement(0, victim.step(server.invitation()))
    for client in range(1, 10):
        server.add_advertisement(client, SecureDevice(attacked.terms, client, signers[client]).advertise().encode())
    victim.step(server.close_advertising()[0])


def test_a_sum_of_fewer_than_the_owner_allows(victim: Victim) -> None:
    """Seven of a cohort of nine are enough for the threshold: a device that asks for eight does not mask at all."""
    victim.restart(cohort=8)
    with pytest.raises(WorkerError, match="7 of 9 devices would be enough to open the sum, expected at least 8"):
        Sum(victim, range(1, 9)).share()


def test_a_cohort_of_three_that_ends_with_two(victim: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    attacked = Sum(victim, range(1, 3))
    sharers = attacked.share()
    answer = attacked.mask(sharers)
    attacked.silent = {2}
    monkeypatch.setattr(attacked.server, "_enough", lambda *_: None)  # an honest server would not go on, either
    with pytest.raises(WorkerError, match="2 of 3 devices survived, expected at least 3"):
        attacked.open(answer, sharers)


def test_a_list_of_sharers_below_the_threshold(victim: Victim) -> None:
    attacked = Sum(victim, range(1, 9))
    sharers = attacked.share()
    few = replace(Sharers.decode(sharers[0]), bitmap=attacked.server._graph.bitmap(range(6)))
    reply = decode_reply(attacked.mask({0: few.encode()}))
    assert reply.status is Status.ERROR and "6 of 9 devices sent shares, expected at least 7" in reply.message


def test_the_others_weights_are_listed_and_weighed(victim: Victim) -> None:
    """A total that the server makes up would let a device believe that it is a small part."""
    victim.config = replace(victim.config, weighting="examples")
    for weights in ((4, 1, 1), (1, 2, 2), (4, 4)):  # more than half; not its own; not one of each
        victim.restart()
        (victim.folder / "state" / "masked.seeds").unlink(missing_ok=True)
        attacked = Sum(victim, range(1, 3), weighted=True)
        told = Sharers.decode(attacked.share({0: 4, 1: 3, 2: 3})[0])
        reply = decode_reply(attacked.mask({0: replace(told, weights=weights).encode()}))
        assert reply.status is Status.ERROR and not reply.projected_grads.size


def test_what_devices_sign_names_the_weights() -> None:
    """Else a server could show each device other weights, and have one consent for all."""
    signed = {
        agreement(Sharers(b"s" * 16, b"\x07", weights), b"c", b"\x07", 1) for weights in ((4, 3, 3), (4, 3, 2), ())
    }
    assert len(signed) == 3


def test_what_is_over_the_threshold_is_summed(victim: Victim) -> None:
    assert len(Sum(victim, range(1, 5)).run()) == 3
