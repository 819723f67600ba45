"""Every field of a reply is checked, what fails is refused by reason, and the round goes on with the rest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from server.messaging.validation import MAX_EXAMPLES, Refused, RoundInbox, check_reply
from zo_common.estimator.settings import EstimatorConfig
from zo_common.wire.plan import Plan, Reply, Status, encode_reply

MAX_SCALAR = 100.0
PLAN = Plan(4, 77, 5, 123, 0xABC, 2, 8, 1e-3, EstimatorConfig("two-sided", 3, 1e-3))
GRADS = np.arange(6, dtype=np.float32).reshape(2, 3)
GOOD = Reply(Status.OK, 4, 3, 5, 77, 0xABC, num_examples=9, loss=2.5, projected_grads=GRADS)


def _changed(**changes: Any) -> bytes:
    return encode_reply(replace(GOOD, **changes))


def _reason(data: bytes, plan: Plan = PLAN) -> str:
    with pytest.raises(Refused) as refused:
        check_reply(data, plan, MAX_SCALAR)
    assert str(refused.value)
    return refused.value.reason


def test_a_valid_reply_passes_with_its_numbers() -> None:
    reply = check_reply(encode_reply(GOOD), PLAN, MAX_SCALAR)

    assert (reply.client_id, reply.num_examples, reply.loss) == (5, 9, 2.5)
    np.testing.assert_array_equal(reply.projected_grads, GRADS)


@pytest.mark.parametrize("cut", [0, 1, 20, len(encode_reply(GOOD)) - 1])
def test_malformed_by_a_cut(cut: int) -> None:
    assert _reason(encode_reply(GOOD)[:cut]) == "malformed"


def test_malformed_by_trailing_bytes() -> None:
    assert _reason(encode_reply(GOOD) + b"\0") == "malformed"


def test_malformed_by_an_unknown_status() -> None:
    data = bytearray(encode_reply(GOOD))
    data[3] = 99

    assert _reason(bytes(data)) == "malformed"


def test_malformed_by_announcing_more_scalars_than_there_are() -> None:
    data = bytearray(encode_reply(GOOD))
    steps = data.index(b"\x02\x00\x03\x00")
    data[steps : steps + 4] = b"\xff\xff\xff\xff"

    assert _reason(bytes(data)) == "malformed"


def test_wrong_round_of_the_reply() -> None:
    assert _reason(_changed(server_round=3)) == "wrong-round"


@pytest.mark.parametrize("have_round", [0, 2, 4, 2**32 - 1])
def test_wrong_round_of_the_weights(have_round: int) -> None:
    assert _reason(_changed(have_round=have_round)) == "wrong-round"


def test_wrong_client() -> None:
    assert _reason(_changed(client_id=6)) == "wrong-client"


def test_wrong_seed() -> None:
    assert _reason(_changed(seed=78)) == "wrong-seed"


def test_wrong_checksum() -> None:
    assert _reason(_changed(checksum=0xABD)) == "wrong-checksum"


def test_any_checksum_passes_where_the_server_has_none() -> None:
    assert check_reply(_changed(checksum=1), replace(PLAN, checksum=0), MAX_SCALAR).checksum == 1


@pytest.mark.parametrize("shape", [(0, 0), (1, 3), (3, 2), (2, 2), (1, 6)])
def test_wrong_shape(shape: tuple[int, int]) -> None:
    assert _reason(_changed(projected_grads=np.ones(shape, np.float32))) == "wrong-shape"


@pytest.mark.parametrize("examples", [0, MAX_EXAMPLES + 1, 2**32 - 1])
def test_no_examples_or_more_than_anybody_has(examples: int) -> None:
    assert _reason(_changed(num_examples=examples)) == "no-examples"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_scalar(value: float) -> None:
    grads = GRADS.copy()
    grads[1, 2] = value

    assert _reason(_changed(projected_grads=grads)) == "non-finite"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_loss(value: float) -> None:
    assert _reason(_changed(loss=value)) == "non-finite"


@pytest.mark.parametrize("sign", [1, -1])
def test_out_of_range(sign: int) -> None:
    grads = GRADS.copy()
    grads[0, 0] = sign * np.nextafter(np.float32(MAX_SCALAR), np.float32(np.inf))

    assert _reason(_changed(projected_grads=grads)) == "out-of-range"


class TestSigns:
    """A reply of one bit a direction."""

    DATA = _changed(projected_grads=np.where(GRADS > 2, -1, 1).astype(np.float32), one_bit=True)

    def test_where_votes_are_counted(self) -> None:
        reply = check_reply(self.DATA, PLAN, MAX_SCALAR, votes=True)

        assert reply.projected_grads.tolist() == [[1, 1, 1], [-1, -1, -1]]

    def test_anywhere_else_nobody_measured_them(self) -> None:
        with pytest.raises(Refused, match="holds signs, expected float32 scalars") as refused:
            check_reply(self.DATA, PLAN, MAX_SCALAR)

        assert refused.value.reason == "one-bit"

    def test_an_inbox_counts_them(self) -> None:
        for votes, counted in ((False, 0), (True, 1)):
            inbox = RoundInbox({1: PLAN}, MAX_SCALAR, votes=votes)
            inbox.put(1, self.DATA)
            assert len(inbox.scalars()) == counted and inbox.refused["one-bit"] == 1 - counted

    def test_floats_pass_where_votes_are_counted(self) -> None:
        assert check_reply(encode_reply(GOOD), PLAN, MAX_SCALAR, votes=True).projected_grads.max() == 5


def test_the_largest_legal_scalar_passes() -> None:
    grads = np.full((2, 3), MAX_SCALAR, np.float32)

    assert check_reply(_changed(projected_grads=grads), PLAN, MAX_SCALAR).projected_grads.max() == MAX_SCALAR


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (Status.NON_FINITE, "client-non-finite"),
        (Status.CHECKSUM, "client-checksum"),
        (Status.ERROR, "client-error"),
    ],
)
def test_what_the_client_itself_refuses_is_shown_in_its_words(status: Status, reason: str) -> None:
    data = _changed(status=status, message="the loss is not finite", projected_grads=np.zeros((0, 0), np.float32))

    with pytest.raises(Refused, match="the loss is not finite") as refused:
        check_reply(data, PLAN, MAX_SCALAR)

    assert refused.value.reason == reason


@pytest.mark.parametrize("field", ["server_round", "client_id", "seed"])
def test_a_refusal_of_the_client_must_belong_to_its_plan_too(field: str) -> None:
    data = _changed(status=Status.ERROR, message="x", **{field: getattr(GOOD, field) + 1})

    assert _reason(data).startswith("wrong-")


class TestRoundInbox:
    """Plans of nodes 10, 11, 12 for clients 0, 1, 2."""

    def plans(self) -> dict[int, Plan]:
        return {10 + client: replace(PLAN, client_id=client, seed=70 + client) for client in range(3)}

    def reply(self, client: int, **changes: Any) -> bytes:
        return _changed(client_id=client, seed=70 + client, **changes)

    def test_the_round_goes_on_with_the_valid_ones(self) -> None:
        inbox = RoundInbox(self.plans(), MAX_SCALAR)

        inbox.put(10, self.reply(0))
        inbox.put(11, b"garbage")
        inbox.put(12, self.reply(2, num_examples=4))

        assert [(s.client_id, s.seed, s.num_examples) for s in inbox.scalars()] == [(0, 70, 9), (2, 72, 4)]
        assert dict(inbox.refused) == {"malformed": 1}
        assert "client 1" in inbox.details[0]

    def test_a_word_beside_valid_scalars_is_kept_and_refuses_nothing(self) -> None:
        inbox = RoundInbox({1: PLAN}, MAX_SCALAR)

        inbox.put(1, _changed(message="rounding noise"))

        assert inbox.words == ["client 5: rounding noise"]
        assert list(inbox.replies) == [1]
        assert not inbox.refused

    def test_duplicate(self) -> None:
        inbox = RoundInbox(self.plans(), MAX_SCALAR)

        inbox.put(10, self.reply(0))
        inbox.put(10, self.reply(0, num_examples=5000))

        assert dict(inbox.refused) == {"duplicate": 1}
        assert [s.num_examples for s in inbox.scalars()] == [9]

    def test_not_asked(self) -> None:
        inbox = RoundInbox(self.plans(), MAX_SCALAR)

        inbox.put(99, self.reply(0))

        assert dict(inbox.refused) == {"not-asked": 1}
        assert inbox.scalars() == []

    def test_one_client_cannot_answer_for_another(self) -> None:
        inbox = RoundInbox(self.plans(), MAX_SCALAR)

        inbox.put(10, self.reply(1))

        assert dict(inbox.refused) == {"wrong-client": 1}

    def test_behind_is_a_request_and_not_a_refusal(self) -> None:
        inbox = RoundInbox(self.plans(), MAX_SCALAR)

        inbox.put(10, self.reply(0, status=Status.BEHIND, have_round=1, projected_grads=np.zeros((0, 0), np.float32)))

        assert inbox.behind == {10: 1}
        assert not inbox.refused
        assert inbox.scalars() == []

    def test_reasons_are_counted(self) -> None:
        inbox = RoundInbox(self.plans(), MAX_SCALAR)

        inbox.put(10, b"")
        inbox.put(11, b"x")
        inbox.put(12, self.reply(2, checksum=1))

        assert dict(inbox.refused) == {"malformed": 2, "wrong-checksum": 1}
        assert len(inbox.details) == 3

    def test_without_a_model_the_majority_decides_about_the_checksum(self) -> None:
        plans = {node: replace(plan, checksum=0) for node, plan in self.plans().items()}
        inbox = RoundInbox(plans, MAX_SCALAR)
        for client, checksum in enumerate((5, 6, 6)):
            inbox.put(10 + client, self.reply(client, checksum=checksum))

        inbox.agree_on_checksum()

        assert [s.client_id for s in inbox.scalars()] == [1, 2]
        assert dict(inbox.refused) == {"wrong-checksum": 1}
        assert "client 0" in inbox.details[0]

    def test_without_a_majority_nobody_counts_and_nobody_is_blamed(self) -> None:
        plans = {node: replace(plan, checksum=0) for node, plan in self.plans().items()}
        inbox = RoundInbox(plans, MAX_SCALAR)
        for client, checksum in enumerate((0, 6)):
            inbox.put(10 + client, self.reply(client, checksum=checksum))

        inbox.agree_on_checksum()

        assert inbox.scalars() == []
        assert dict(inbox.refused) == {"no-majority": 1}
        assert inbox.failed == {}

    def test_words_of_devices_are_one_printable_line(self) -> None:
        inbox = RoundInbox(self.plans(), MAX_SCALAR)

        inbox.put(10, self.reply(0, status=Status.ERROR, message="one\ntwo\x1b[2J three"))

        assert inbox.details == ["client 0: one two\N{REPLACEMENT CHARACTER}[2J three"]
