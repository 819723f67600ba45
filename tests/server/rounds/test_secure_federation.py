"""Secure aggregation on the fake grid: the ledger gets the plain sum's round, the server sees no device's scalars."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_grid import Memory
from secure_cohort import node_key
from toy_fleet import TOY, RecordingGrid, toy_grids

from client.device import secure_sums as secure
from server.rounds.federation import Federation
from zo_common.aggregation.mean import ClientScalars, aggregate
from zo_common.config.run import RunConfig
from zo_common.errors import ConfigError
from zo_common.estimator.curvature import Curvature
from zo_common.ledger.ledger import Ledger
from zo_common.secure_sum.masks import new_private, public_of
from zo_common.secure_sum.messages import Advertisement, KeyList
from zo_common.secure_sum.node_keys import peer_line
from zo_common.wire.masked_reply import GRID, is_masked, mean_curvature_of, means_of, vector_length
from zo_common.wire.plan import Reply, Status, decode_reply, encode_reply

Settings = Callable[..., RunConfig]
Federate = Callable[..., Federation]
Ledgers = Callable[[RunConfig], Ledger]
SECURE = {
    "directions": "shared",
    "secure_aggregation": True,
    "secure_threshold": 0.5,
    "num_server_rounds": 2,
    "round_timeout": 300.0,
}
STEPS = {"share": 2, "mask": 3, "consent": 4, "reveal": 5}  # the message of a round at which a device falls silent


@pytest.fixture
def grid_for(monkeypatch: pytest.MonkeyPatch) -> Callable[[RunConfig], RecordingGrid]:
    """Three devices with three to five utterances."""
    return toy_grids(monkeypatch)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return lambda **changes: RunConfig(**{**TOY, "output": str(tmp_path / "run"), **changes})


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Reply]:
    """The plain replies as they are before masking, which never leave a device."""
    seen: list[Reply] = []
    real = secure.vector_of

    def spy(reply: Reply, *rest: Any) -> Any:
        seen.append(reply)
        return real(reply, *rest)

    monkeypatch.setattr(secure, "vector_of", spy)
    return seen


def _silent_from(nth: int, *rounds: int) -> Callable[[int], None]:
    asked: Counter[int] = Counter()

    def before(server_round: int) -> None:
        asked[server_round] += 1
        if server_round in rounds and asked[server_round] >= nth:
            raise ConnectionError("gone")

    return before


def _expected(replies: list[Reply], config: RunConfig, server_round: int) -> bytes:
    """Coefficients of a round from the plain sum of quantised scalars."""
    weights = [r.num_examples if config.weighting == "examples" else 1 for r in replies]
    total = sum(GRID.quantise(r.projected_grads)[0] * w for r, w in zip(replies, weights, strict=True))
    mean = ClientScalars(0, replies[0].seed, sum(weights), GRID.mean(np.asarray(total), sum(weights)))
    rate = float(np.float32(config.learning_rate_at(server_round)))
    (contribution,) = aggregate([mean], rate, config.weighting, shared=True)
    return contribution.coefficients.tobytes()


class TestRounds:
    @pytest.mark.parametrize("changes", [{}, {"weighting": "uniform"}, {"secure_neighbours": 4}])
    def test_the_ledger_holds_one_contribution_the_plain_sum_s(
        self, settings: Settings, federate: Federate, grid_for: Any, measured: list[Reply], observed: Any,
        ledger_of: Ledgers, changes: dict[str, Any],
    ) -> None:  # fmt: skip
        config = settings(**SECURE, **changes)
        federate(config, grid_for(config))

        ledger = ledger_of(config)
        assert [len(record.contributions) for record in ledger.records] == [1, 1], observed.text
        for record in ledger.records:
            replies = [r for r in measured if r.server_round == record.server_round]
            assert len(replies) == 3
            (contribution,) = record.contributions
            assert contribution.client_id == 0
            assert contribution.coefficients.tobytes() == _expected(replies, config, record.server_round)
            # and FedAvg's own arithmetic on unrounded scalars is next to it
            scalars = [ClientScalars(r.client_id, r.seed, r.num_examples, r.projected_grads) for r in replies]
            rate = float(np.float32(config.learning_rate_at(record.server_round)))
            (plain,) = aggregate(scalars, rate, config.weighting, shared=True)
            assert contribution.seed == plain.seed
            np.testing.assert_allclose(contribution.coefficients, plain.coefficients, rtol=1e-5, atol=1e-9)
        assert [(r.asked, r.answered) for r in observed.reports] == [(3, 3)] * 2
        assert all(r.loss for r in measured) and [r.loss for r in observed.reports] == [None] * 2
        assert "0 of 3 devices signed their keys" in observed.text

    def test_nothing_the_server_receives_holds_a_device_s_scalars(
        self, settings: Settings, federate: Federate, grid_for: Any, measured: list[Reply]
    ) -> None:
        config = settings(**SECURE)
        grid = grid_for(config)
        federate(config, grid)

        seen = b"|".join(grid.received)
        assert len(measured) == 6 and len(grid.received) == 3 + 2 * 5 * 3  # introductions; five steps of three devices
        for reply in measured:
            for value in reply.projected_grads.ravel():
                assert value.tobytes() not in seen and np.float64(value).tobytes() not in seen
                units = GRID.quantise(np.array([value]))[0]
                for weight in (1, reply.num_examples):
                    assert (units * weight).tobytes() not in seen
            assert reply.projected_grads.tobytes() not in seen
            assert np.float32(reply.loss).tobytes() not in seen

    @pytest.mark.parametrize("step", STEPS)
    def test_a_device_that_falls_silent_in_any_step(
        self, settings: Settings, federate: Federate, grid_for: Any, measured: list[Reply], observed: Any,
        ledger_of: Ledgers, step: str,
    ) -> None:  # fmt: skip
        config = settings(**SECURE, weighting="uniform")  # of two devices left, one would weigh more than half
        grid = grid_for(config)
        grid[1].before = _silent_from(STEPS[step], 1)

        federate(config, grid)

        sent = 2 if step in ("share", "mask") else 3
        replies = [r for r in measured if r.server_round == 1]
        assert len(replies) == sent
        first = ledger_of(config).records[0]
        assert first.contributions[0].coefficients.tobytes() == _expected(replies, config, 1)
        assert [r.answered for r in observed.reports] == [sent, 3]
        assert observed.reports[0].refused["no-answer"] == 1

    def test_below_the_threshold_the_round_stays_empty(
        self, settings: Settings, federate: Federate, grid_for: Any, observed: Any, ledger_of: Ledgers
    ) -> None:
        config = settings(**SECURE | {"secure_threshold": 0.6667})
        grid = grid_for(config)
        grid[1].before = _silent_from(STEPS["mask"], 1)

        federate(config, grid)

        assert [len(record.contributions) for record in ledger_of(config).records] == [0, 1]
        assert [r.answered for r in observed.reports] == [0, 3]
        assert "2 of 3 devices sent masked vectors, 3 are needed" in observed.text

    def test_a_device_that_is_behind_catches_up_and_is_in_the_sum(
        self, settings: Settings, federate: Federate, grid_for: Any, measured: list[Reply], observed: Any
    ) -> None:
        config = settings(**SECURE | {"num_server_rounds": 3})
        grid = grid_for(config)
        grid.on_push = lambda server_round: grid[2].memory.back_to_base() if server_round == 3 else None

        federate(config, grid)

        assert [r.answered for r in observed.reports] == [3, 3, 3]
        assert len([r for r in measured if r.server_round == 3]) == 3

    def test_bytes_of_all_steps_are_counted(
        self, settings: Settings, federate: Federate, grid_for: Any, observed: Any
    ) -> None:
        config = settings(**SECURE)
        federation = federate(config, grid_for(config))
        report = observed.reports[0]
        # advertisement, shares, masked reply, consent, revealed shares
        a_device = (20 + 8 + 64 + 1) + (96 + 2 * 122) + (7 + 52 + 32 + 8 * 5) + 29 + (32 + 3 * 41)
        assert abs(report.up.payload - 3 * a_device) <= 12
        assert sum(federation.statuses.of(c).payload_up for c in range(3)) == 2 * report.up.payload


@pytest.mark.slow
def test_the_step_is_measured_under_the_masks(
    tiny_whisper: Path, mini_corpus: Path, memories: list[Memory], federate: Federate, measured: list[Reply],
    tmp_path: Path,
) -> None:  # fmt: skip
    """Of the devices' curvature the server knows the mean alone, and takes the step from it."""
    config = RunConfig(
        model=str(tiny_whisper), data=str(mini_corpus), num_queries=3, batch_size=2, learning_rate="auto",
        loss_check=False, output=str(tmp_path / "run"), **SECURE | {"round_timeout": 600.0},
    )  # fmt: skip
    grid = RecordingGrid(config, memories)
    federate(config, grid)

    rows = [json.loads(line) for line in (tmp_path / "run" / "steps.jsonl").read_text().splitlines()]
    assert [row["devices"] for row in rows] == [3, 3]
    replies = [r for r in measured if r.server_round == 1]
    relative = [r.curvature.relative(np.square(r.projected_grads.astype(float)).mean()) for r in replies]  # type: ignore[union-attr]
    assert rows[0]["per_direction"] == pytest.approx(np.exp2(np.mean([np.log2(c.per_direction) for c in relative])))
    count = replies[0].projected_grads.size
    unbiased = max(1, count - 2) / count
    assert rows[0]["noise_share"] == pytest.approx(unbiased * np.mean([c.noise_share for c in relative]), abs=1e-6)
    seen = b"|".join(grid.received)
    assert not any(np.float32(n).tobytes() in seen for r in replies for n in astuple(r.curvature))  # type: ignore[arg-type]


def _summed(curvatures: list[Curvature | None], grads: np.ndarray) -> np.ndarray:
    replies = [Reply(Status.OK, 1, 0, 3, 4, 5, 6, 0.5, grads, curvature=each) for each in curvatures]
    return np.sum([secure.vector_of(reply, 1, len(replies))[0] for reply in replies], axis=0)


def test_the_mean_of_curvatures_comes_out_of_a_sum() -> None:
    grads = np.full((1, 4), 2.0, np.float32)  # m = 4
    total = _summed([Curvature(2.0, 4.0, -1.0, 1.0), Curvature(8.0, 8.0, 2.0, 2.0)], grads)

    mean = means_of(total, 2, (1, 4))
    found = mean_curvature_of(total, 2)

    assert len(total) == vector_length(1, 4, curvature=True) == 9
    assert mean.tolist() == [[2.0] * 4]
    assert total[4] == 0
    # t is the geometric mean of 2 and 8; gᵀFg over m·t is 1/2 and 1/4 of the signal, -1/8 and 1/16 of the noise; v/m is
    # 1/4 and 1/2, of which half counts: quotients by the m of four scalars are twice too large on average
    assert astuple(found)[:4] == pytest.approx((4.0, 4.0 * 3 / 8, -4.0 / 32, 3 / 8 / 2), abs=1e-6)


def test_numbers_in_a_sum_are_bounded_and_a_liar_s_are_cut_off() -> None:
    grads = np.full((1, 2), 2.0, np.float32)
    wild = _summed([Curvature(1e-38, 1e38, -1e38, 1e38)], grads)
    assert wild[-4:].tolist() == [-60 << 24, 1 << 24, -1 << 24, round(1.5 * 2**24)]
    silent = _summed([Curvature(0.0, 0.0, 0.0, 0.0)], grads)
    assert mean_curvature_of(silent, 1).noise_share == 1.0

    total = _summed([Curvature(2.0, 4.0, 1.0, 1.0)] * 2, grads)
    total[-4:] += np.array([1 << 60, -(1 << 60), 1 << 60, -(1 << 60)])  # which a masked vector may hold
    assert astuple(mean_curvature_of(total, 2))[:4] == (2.0**60, -(2.0**60), 2.0**60, 0.0)


@pytest.mark.slow
def test_with_a_model_that_trains(
    tiny_whisper: Path, mini_corpus: Path, memories: list[Memory], federate: Federate, measured: list[Reply],
    ledger_of: Ledgers, tmp_path: Path,
) -> None:  # fmt: skip
    """Devices and server hold a small Whisper: the sum's round moves all of them to one state."""
    config = RunConfig(
        model=str(tiny_whisper), data=str(mini_corpus), num_queries=2, batch_size=2, learning_rate=0.05,
        loss_check=False, output=str(tmp_path / "run"), **SECURE | {"round_timeout": 600.0},
    )  # fmt: skip
    federation = federate(config, RecordingGrid(config, memories))
    ledger = ledger_of(config)
    for record in ledger.records:
        replies = [r for r in measured if r.server_round == record.server_round]
        assert len(replies) == 3
        assert record.contributions[0].coefficients.tobytes() == _expected(replies, config, record.server_round)
    assert (
        federation.global_model is not None and ledger.records[-1].checksum == federation.global_model.state.checksum()
    )
    assert {r.checksum for r in measured if r.server_round == 2} == {ledger.records[0].checksum}


class TestDevices:
    def test_scalars_sent_in_the_clear_are_not_taken(
        self, settings: Settings, federate: Federate, grid_for: Any, measured: list[Reply], observed: Any
    ) -> None:
        config = settings(**SECURE)
        grid = grid_for(config)
        grid[0].after = lambda r, data: encode_reply(measured[0]) if r == 1 and is_masked(data) else data
        federate(config, grid)
        assert observed.reports[0].refused["unmasked"] == 1 and observed.reports[0].answered == 2

    def test_a_plan_without_sharers_is_not_answered_in_the_clear(
        self, settings: Settings, federate: Federate, grid_for: Any, observed: Any
    ) -> None:
        def alter(node: int, record: dict[str, Any]) -> None:
            if node == 100 and "plan" in record and "secure" in record:
                del record["secure"]

        config = settings(**SECURE)
        grid = grid_for(config)
        grid.alter = alter
        federate(config, grid)
        assert "its reply would be seen alone" in observed.text
        assert observed.reports[0].answered == 2

    def test_a_device_set_to_secure_only_answers_no_plain_run(
        self, settings: Settings, federate: Federate, grid_for: Any, observed: Any, ledger_of: Ledgers
    ) -> None:
        config = settings(directions="shared", num_server_rounds=1)
        grid = grid_for(config)
        grid[1].context.node_config["secure-only"] = True
        federate(config, grid)
        assert observed.reports[0].answered == 2 and "set to secure-only" in observed.text

    def test_a_weight_that_is_not_its_own_is_refused(
        self, settings: Settings, federate: Federate, grid_for: Any, observed: Any
    ) -> None:
        config = settings(**SECURE)
        grid = grid_for(config)

        def run() -> None:
            federation = Federation(config, grid, observed.events)
            node = 100
            federation.roster.members[node] = type(federation.members[node])(
                node, 0, federation.members[node].num_examples + 1, federation.members[node].description
            )
            federation.run()

        run()
        assert observed.reports[0].answered == 2 and "let it introduce itself again" in observed.text

    def test_node_keys_notice_a_server_that_swaps_keys(
        self, settings: Settings, federate: Federate, monkeypatch: pytest.MonkeyPatch, observed: Any, tmp_path: Path,
        ledger_of: Ledgers,
    ) -> None:  # fmt: skip
        config = settings(**SECURE | {"secure_threshold": 0.6667}, weighting="uniform")
        grid = toy_grids(monkeypatch, 4)(config)
        peers = tmp_path / "peers.keys"
        peers.write_text("".join(peer_line(c, node_key(c)[1].decode()) for c in range(4)))
        for client in range(4):
            path = tmp_path / f"{client}.key"
            path.write_bytes(node_key(client)[0])
            grid[client].context.node_config.update({"node-key": str(path), "peer-keys": str(peers)})

        def swap(node: int, record: dict[str, Any]) -> None:
            data = record.get("secure", b"")
            if data[3:4] == bytes([KeyList.KIND]) and node == 100 and grid[0].asked[-1] == 1:
                keys = KeyList.decode(data)
                forged = Advertisement(keys.session, 1, *(public_of(new_private()) for _ in range(2)))
                record["secure"] = KeyList(keys.session, keys.cohort, (keys.keys[0], forged, *keys.keys[2:])).encode()

        grid.alter = swap
        federate(config, grid)

        assert "keys of device 1 are not signed by its node key" in observed.text
        assert "4 of 4 devices signed their keys" in observed.text
        assert [r.answered for r in observed.reports] == [3, 4]
        assert all(record.contributions for record in ledger_of(config).records)

    def test_secrets_are_forgotten_when_the_sum_is_over(
        self, settings: Settings, federate: Federate, grid_for: Any
    ) -> None:
        config = settings(**SECURE)
        grid = grid_for(config)
        federate(config, grid)
        for client in range(3):
            kept = grid[client].context.state.config_records["zo-secure"]
            assert kept["device"] == b"" and kept["round"] == 2

    def test_integer_noise_of_every_device_is_in_the_sum(
        self, settings: Settings, federate: Federate, grid_for: Any, measured: list[Reply], ledger_of: Ledgers,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setattr(secure, "noise_of", lambda *_: lambda values: values + (1 << 24))
        config = settings(**SECURE | {"num_server_rounds": 1, "weighting": "uniform", "lr_schedule": "constant"})
        federate(config, grid_for(config))
        found = ledger_of(config).records[0].contributions[0].coefficients
        mean = np.mean([r.projected_grads.astype(np.float64) for r in measured], axis=0) + 1.0
        rate = float(np.float32(config.learning_rate))
        np.testing.assert_allclose(found, -rate * mean / config.num_queries, rtol=1e-5)


@pytest.mark.parametrize("changes", [{"directions": "independent"}, {"evaluate_on": "clients"}])
def test_settings_that_secure_sums_cannot_serve(settings: Settings, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="secure-aggregation needs"):
        settings(**SECURE | changes)


def test_a_masked_reply_with_scalars_in_the_clear_is_malformed(measured: list[Reply]) -> None:
    from zo_common.errors import CodecError
    from zo_common.wire.masked_reply import bare, decode_masked, encode_masked

    reply = Reply(Status.OK, 1, 0, 3, 4, 5, 6, 0.5, np.ones((1, 2), np.float32), "word")
    head, masked = decode_masked(encode_masked(reply, b"masked"))
    assert (head.num_examples, head.loss, head.projected_grads.size, head.message) == (0, 0.0, 0, "")
    assert masked == b"masked"
    clear = encode_reply(reply)
    curved = encode_reply(replace(bare(reply), curvature=Curvature(1.0, 2.0, 3.0, 4.0)))
    with pytest.raises(CodecError, match="in the clear"):
        decode_masked(b"ZX\x01" + len(curved).to_bytes(4, "little") + curved)
    with pytest.raises(CodecError, match="in the clear"):
        decode_masked(b"ZX\x01" + len(clear).to_bytes(4, "little") + clear)
    assert decode_reply(clear).message == "word"
