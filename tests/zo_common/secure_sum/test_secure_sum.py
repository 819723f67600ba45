"""A whole secure sum through the real bytes: exact under any drop-outs, and nothing of one device is ever visible."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secure_cohort import STEPS, Cohort, terms_of, vectors_of

from zo_common.errors import SecureAggregationError
from zo_common.secure_sum.messages import MaskedInput, Sharers
from zo_common.secure_sum.quantiser import MOST_SUM
from zo_common.secure_sum.terms import Terms


@st.composite
def drop_outs(draw: Any) -> tuple[int, dict[int, str]]:
    """A number of devices and at which step some of them fall silent."""
    count = draw(st.integers(3, 9))
    silent = draw(st.lists(st.integers(0, count - 1), unique=True, max_size=count))
    return count, {client: draw(st.sampled_from(STEPS)) for client in silent}


class TestSum:
    @settings(max_examples=40, deadline=None)
    @given(drop_outs(), st.sampled_from([0.5, 2 / 3, 0.8]))
    def test_equals_the_plain_sum_of_the_survivors_or_is_refused(
        self, drawn: tuple[int, dict[int, str]], threshold: float
    ) -> None:
        count, drops = drawn
        terms = terms_of(threshold=threshold)
        clients = [1000 * client + 7 for client in range(count)]  # ids are any u64
        cohort = Cohort(terms, vectors_of(clients, 4), {clients[c]: step for c, step in drops.items()})
        stay = count - len(drops)
        if stay < terms.needed(count):
            with pytest.raises(SecureAggregationError, match="are needed"):
                cohort.run()
            return
        assert (cohort.run() == cohort.plain()).all()
        early = sum(step in ("share", "mask") for step in drops.values())
        assert len(cohort.masked) == count - early

    @settings(max_examples=15, deadline=None)
    @given(st.data())
    def test_with_few_neighbours_each(self, data: st.DataObject) -> None:
        terms = terms_of(threshold=0.5, neighbours=6)
        silent = data.draw(st.lists(st.integers(0, 19), unique=True, max_size=3))
        drops = {client: data.draw(st.sampled_from(STEPS)) for client in silent}
        cohort = Cohort(terms, vectors_of(range(20), 4), drops)
        assert (cohort.run() == cohort.plain()).all()  # of 7 near each device at most 3 are gone, 4 are needed
        sent = [len(data) for data in cohort.received]
        assert max(sent) < 96 + 6 * 122 + 1

    def test_the_largest_values_do_not_overflow(self) -> None:
        most = MOST_SUM // 3
        vectors = {client: np.array([most, -most, 0], np.int64) for client in range(3)}
        cohort = Cohort(terms_of(length=3), vectors)
        assert cohort.run().tolist() == [3 * most, -3 * most, 0]
        cohort = Cohort(
            terms_of(length=3), {client: values + np.array([1, 0, 0]) for client, values in vectors.items()}
        )
        with pytest.raises(SecureAggregationError):
            cohort.run()
        assert all("could overflow" in word for word in cohort.refused.values()) and len(cohort.refused) == 3

    def test_weights_share_out_the_range(self) -> None:
        vectors = vectors_of(range(4), 4)
        cohort = Cohort(terms_of(weighted=True), vectors, weights={0: 5, 1: 1, 2: 2, 3: 2})
        assert (cohort.run() == cohort.plain()).all()
        assert cohort.server.weights == {0: 3, 1: 1, 2: 2, 3: 2}  # of three devices that stay, no one is more than half

    def test_a_device_that_would_be_most_of_the_sum_is_in_none(self) -> None:
        def tell(step: str, client: int, data: bytes) -> bytes:
            return replace(Sharers.decode(data), weights=(6, 1, 2, 2)).encode() if step == "mask" else data

        cohort = Cohort(terms_of(weighted=True), vectors_of(range(4), 4), to_device=tell)
        with pytest.raises(SecureAggregationError):
            cohort.run()
        assert len(cohort.refused) == 4 and all("expected at most half" in word for word in cohort.refused.values())

    def test_noise_is_summed_with_the_values(self) -> None:
        drawn: list[np.ndarray] = []

        def noise(values: np.ndarray) -> np.ndarray:
            drawn.append(np.random.default_rng(len(drawn)).integers(-1000, 1000, values.shape))
            return values + drawn[-1]

        cohort = Cohort(terms_of(), vectors_of(range(5), 4), {4: "mask"}, noise=noise)
        total = cohort.run()
        assert len(drawn) == 4 and (total == cohort.plain() + sum(drawn)).all() and any(d.any() for d in drawn)

    def test_noise_of_another_shape_is_refused(self) -> None:
        cohort = Cohort(terms_of(), vectors_of(range(3), 4), noise=lambda values: values[:2])
        with pytest.raises(SecureAggregationError):
            cohort.run()
        assert "shape" in cohort.refused[0]

    @pytest.mark.parametrize("count", [1, 2])
    def test_a_cohort_of_fewer_than_three_is_refused(self, count: int) -> None:
        with pytest.raises(SecureAggregationError, match="devices advertised keys"):
            Cohort(terms_of(), vectors_of(range(count), 4)).run()


class TestWhatTheServerSees:
    def test_no_vector_seed_or_private_key_occurs_in_it(self) -> None:
        drops = {1: "mask", 2: "consent", 3: "reveal"}
        cohort = Cohort(terms_of(length=3, threshold=0.5), vectors_of(range(8), 3), drops)
        secrets = {
            (d.client_id, s)
            for d in cohort.devices.values()
            for s in (d.memory.box_key, d.memory.mask_key, d.memory.seed)
        }
        assert len(secrets) == 24
        assert (cohort.run() == cohort.plain()).all()
        seen = b"|".join(cohort.received)
        for client, values in cohort.vectors.items():
            assert not any(values[i : i + 1].tobytes() in seen for i in range(3)), client
            assert not any(values[i : i + 1].astype(">i8").tobytes() in seen for i in range(3))
        assert not any(secret in seen for _, secret in secrets)

    def test_what_it_learns_of_one_device_stays_masked(self) -> None:
        """Of every device the server can open the self mask or the pairwise masks, not both."""
        cohort = Cohort(terms_of(), vectors_of(range(6), 4), {1: "mask"})
        cohort.run()
        server = cohort.server
        assert server._secret(0) == cohort.devices[0].memory.seed
        assert server._secret(1) == cohort.devices[1].memory.mask_key
        for client, device in cohort.devices.items():
            opened = server._secret(client)
            assert opened not in ({device.memory.mask_key, device.memory.seed, device.memory.box_key} - {opened})

    @pytest.mark.parametrize("kind", ["zeros", "scalars"])
    def test_masked_vectors_are_uniform_bytes(self, kind: str) -> None:
        """Chi-square over byte values, 255 degrees of freedom: within five standard deviations of its mean."""
        length = 4000
        vectors = vectors_of(range(3), length)
        if kind == "zeros":
            vectors = {client: np.zeros(length, np.int64) for client in vectors}
        cohort = Cohort(terms_of(length=length), vectors)
        cohort.run()
        for values in cohort.masked.values():
            counts = np.bincount(np.frombuffer(values.tobytes(), "u1"), minlength=256)
            expected = 8 * length / 256
            chi = float(((counts - expected) ** 2 / expected).sum())
            assert abs(chi - 255) < 5 * np.sqrt(2 * 255)

    def test_one_input_masked_twice_has_nothing_in_common(self) -> None:
        vectors = vectors_of(range(3), 64)
        first, second = Cohort(terms_of(64), vectors), Cohort(terms_of(64), vectors)
        assert (first.run() == second.run()).all()
        for client in vectors:
            assert not (first.masked[client] == second.masked[client]).any()


class TestAlteredOnTheWay:
    @pytest.mark.parametrize("step", ["share", "mask", "reveal"])
    def test_the_sum_is_right_or_refused_whatever_byte_changes(self, step: str) -> None:
        vectors = vectors_of(range(5), 2)
        size = {"share": 96 + 4 * 122, "mask": 32 + 16, "reveal": 32 + 5 * 41}[step]
        for at in range(0, size, 7 if step == "mask" else 23):

            def tamper(name: str, client: int, data: bytes, at: int = at) -> bytes:
                if name != step or client != 2:
                    return data
                return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]

            cohort = Cohort(terms_of(length=2, threshold=0.5), vectors, to_server=tamper)
            try:
                total = cohort.run()
            except SecureAggregationError:
                continue
            if step == "mask" and 2 in cohort.masked:  # a device may send any numbers; that is not this layer's to see
                assert set(cohort.masked) == set(vectors)
            else:
                assert (total == cohort.plain()).all()

    def test_a_device_that_answers_for_another_is_left_out(self) -> None:
        def tamper(step: str, client: int, data: bytes) -> bytes:
            if step == "mask" and client == 0:
                return replace(MaskedInput.decode(data), client_id=1).encode()
            return data

        cohort = Cohort(terms_of(), vectors_of(range(6), 4), to_server=tamper)
        assert (cohort.run() == cohort.plain()).all()
        assert "answered as device 1" in cohort.refused[0]


def test_needed_is_more_than_the_share_and_at_most_all() -> None:
    terms = terms_of(threshold=2 / 3)
    assert [terms.needed(count) for count in (1, 3, 4, 6, 9, 10, 1000)] == [1, 3, 3, 5, 7, 7, 667]
    assert [terms_of(threshold=0.5).needed(count) for count in (2, 3, 10)] == [2, 2, 6]


def test_terms_have_one_session_each() -> None:
    base = Terms(bytes(16), 1, 4)
    others = [
        replace(base, run_id=b"1" * 16), replace(base, server_round=2), replace(base, length=5),
        replace(base, threshold=0.5), replace(base, neighbours=4), replace(base, weighted=True),
        replace(base, plan=b"1" * 32),
    ]  # fmt: skip
    assert len({t.session for t in [base, *others]}) == 8
