"""Device-level privacy under secure aggregation: a sum with noise enough, and nothing that has less is ever seen."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from toy_engine import toy_engine
from toy_fleet import TOY, RecordingGrid, toy_grids

from client.device import secure_sums as secure
from server.guards import privacy_guard
from server.rounds import secure_round
from server.rounds.federation import Federation
from zo_common.config.run import RunConfig
from zo_common.errors import SecureAggregationError
from zo_common.ledger.ledger import Ledger
from zo_common.privacy.accountant import Release, epsilon_spent
from zo_common.privacy.charges import LOG_NAME, PrivacyLog
from zo_common.privacy.mechanism import LEAST_SHARE, Mechanism
from zo_common.secure_sum.device import SecureDevice
from zo_common.secure_sum.server import SecureServer
from zo_common.wire.masked_reply import vector_of
from zo_common.wire.plan import Plan, Reply, Status

Federate = Callable[..., Federation]
Ledgers = Callable[[RunConfig], Ledger]
NOISE, CLIP = 4.0, 1.5  # the toy's vectors of four scalars are often longer
MASKED = Mechanism("device", CLIP, NOISE, 1, masked=True)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return RunConfig(
        **TOY, output=str(tmp_path / "run"), directions="shared", weighting="uniform", secure_aggregation=True,
        secure_threshold=0.5, num_server_rounds=2, round_timeout=300.0, privacy="device", target_delta=1e-2,
        clip_norm=CLIP, noise_multiplier=NOISE, min_replies=3,
    )  # fmt: skip


@pytest.fixture
def grid_for(monkeypatch: pytest.MonkeyPatch) -> Callable[[RunConfig], RecordingGrid]:
    return toy_grids(monkeypatch, 4)


class Seen:
    """By round: what devices masked, before and after noise, the shares asked for, and the sums that were opened."""

    def __init__(self) -> None:
        self.vectors: dict[int, dict[int, NDArray[np.int64]]] = defaultdict(dict)
        self.noised: dict[int, dict[int, NDArray[np.int64]]] = defaultdict(dict)
        self.totals: dict[int, NDArray[np.int64]] = {}
        self.asked: list[tuple[Mechanism, int]] = []


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    found = Seen()
    mask, total, noise_of = SecureDevice.mask, SecureServer.total, secure.noise_of

    def masking(self: SecureDevice, sharers: Any, values: Any, noise: Any = None, checksum: int = 0) -> Any:
        found.vectors[self.terms.server_round][self.client_id] = values.copy()

        def watched(given: Any) -> Any:
            found.noised[self.terms.server_round][self.client_id] = after = given if noise is None else noise(given)
            return after

        return mask(self, sharers, values, watched, checksum)

    def opened(self: SecureServer) -> Any:
        found.totals[self.terms.server_round] = total(self)
        return found.totals[self.terms.server_round]

    def asked(privacy: Any, devices: int) -> Any:
        found.asked.append((privacy, devices))
        return noise_of(privacy, devices)

    monkeypatch.setattr(SecureDevice, "mask", masking)
    monkeypatch.setattr(SecureServer, "total", opened)
    monkeypatch.setattr(secure, "noise_of", asked)
    return found


class TestRounds:
    def test_the_opened_sum_is_that_of_clipped_vectors_and_their_noise(
        self, config: RunConfig, federate: Federate, grid_for: Any, seen: Seen, observed: Any, ledger_of: Ledgers
    ) -> None:
        federate(config, grid_for(config))

        assert [(r.asked, r.answered, r.loss) for r in observed.reports] == [(4, 4, None)] * 2, observed.text
        for server_round in (1, 2):
            vectors, noised = seen.vectors[server_round], seen.noised[server_round]
            assert (seen.totals[server_round] == sum(noised.values())).all()  # to the unit
            for client, vector in vectors.items():
                assert int((vector**2).sum()) <= MASKED.grid.bound**2
                assert (noised[client] != vector)[:-1].all()
                assert vector[-1] == noised[client][-1] == 0  # the loss is left out
        # three of four must stay, whoever drops out: three shares are enough
        assert seen.asked == [(MASKED, 3)] * 8

        ledger, log = ledger_of(config), PrivacyLog.read(Path(config.output) / LOG_NAME)
        mean = np.ldexp(seen.totals[1][:-1].astype(np.float64), MASKED.grid.exponent).reshape(2, 2) / 4
        rate = float(np.float32(config.learning_rate_at(1)))
        found = ledger.records[0].contributions[0]
        assert found.coefficients.tobytes() == (-rate * mean / 2).astype(np.float32).tobytes()

        # one charge a round and device, whatever messages it took
        assert log.spent == {client: {Release(NOISE): 2} for client in range(4)}
        spent = [epsilon_spent({Release(NOISE): n}, 1e-2) for n in (1, 2)]
        assert [c.epsilon for c in log.charges] == spent == [r.epsilon_spent for r in observed.reports]

    def test_the_ledger_replays_to_the_devices_state(
        self, config: RunConfig, federate: Federate, grid_for: Any, ledger_of: Ledgers
    ) -> None:
        grid = grid_for(config)
        federate(config, grid)
        engine = toy_engine()
        engine.pretend(list(ledger_of(config).records))
        held = grid[0].engine
        held.rewind(1)
        engine.rewind(1)
        assert engine.state.checksum() == held.state.checksum() != engine.base_checksum

    def test_who_drops_out_after_sharing_takes_no_noise_away_that_is_counted_on(
        self, config: RunConfig, federate: Federate, grid_for: Any, seen: Seen, observed: Any
    ) -> None:
        def gone(server_round: int) -> None:
            asked.append(server_round)
            if server_round == 1 and asked.count(1) == 3:  # its plan
                raise ConnectionError("gone")

        asked: list[int] = []
        grid = grid_for(config)
        grid[2].before = gone

        federate(config, grid)

        assert [r.answered for r in observed.reports] == [3, 4]
        assert sorted(seen.noised[1]) == [0, 1, 3]
        assert (seen.totals[1] == sum(seen.noised[1].values())).all()
        assert 3 * MASKED.share_units(3) ** 2 >= (NOISE * MASKED.grid.bound) ** 2

    def test_the_server_may_add_the_noise_to_the_sum_alone(
        self, config: RunConfig, federate: Federate, grid_for: Any, seen: Seen, ledger_of: Ledgers,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        drawn: list[tuple[int, int]] = []
        monkeypatch.setattr(
            secure_round, "discrete_gaussians", lambda count, sigma: drawn.append((count, sigma)) or [1000] * count
        )
        config = replace(config, noise_by="server", num_server_rounds=1)

        federate(config, grid_for(config))

        assert drawn == [(4, math.ceil(NOISE * MASKED.grid.bound))]
        assert all((seen.noised[1][c] == v).all() for c, v in seen.vectors[1].items())
        mean = np.ldexp(seen.totals[1][:-1] + 1000.0, MASKED.grid.exponent).reshape(2, 2) / 4
        rate = float(np.float32(config.learning_rate_at(1)))
        found = ledger_of(config).records[0].contributions[0].coefficients
        assert found.tobytes() == (-rate * mean / 2).astype(np.float32).tobytes()


class TestNoise:
    def test_the_fewest_shares_add_up_to_the_noise_of_the_plan(self) -> None:
        noise = secure.noise_of(MASKED, 5)
        assert noise is not None

        total = sum(noise(np.zeros(2_001, np.int64)) for _ in range(5))

        sigma = NOISE * MASKED.grid.bound
        assert total[-1] == 0
        assert abs(total[:-1].std() / sigma - 1) < 5 / math.sqrt(2 * 2_000)
        assert stats.kstest(total[:-1] / sigma, "norm").pvalue > 1e-6

    @pytest.mark.parametrize("devices", [1, 2, 3, 7, 667, 65_536])
    @pytest.mark.parametrize("noise", [1e-6, 0.3, 1.0, 7.77, 1e6])
    def test_a_share_is_never_too_small(self, devices: int, noise: float) -> None:
        share = Mechanism("device", 3.3, noise, 1, masked=True).share_units(devices)

        assert share >= LEAST_SHARE
        assert math.sqrt(devices) * share >= noise * Mechanism("device", 3.3, noise, 1, masked=True).grid.bound

    def test_only_where_the_plan_asks_for_it(self) -> None:
        assert secure.noise_of(None, 3) is None
        assert secure.noise_of(Mechanism("example", 1.0, 1.0, 9), 3) is None
        assert secure.noise_of(Mechanism("device", 1.0, 0.0, 1), 3) is None


class TestVectors:
    REPLY = Reply(Status.OK, 1, 0, 3, 4, 5, 6, 0.5, np.full((2, 2), 30.0, np.float32))

    def test_whoever_measured_them_they_are_clipped_and_the_loss_is_left_out(self) -> None:
        vector, _ = vector_of(self.REPLY, 1, 4, MASKED)

        assert 0 < int((vector**2).sum()) <= MASKED.grid.bound**2
        assert vector.shape == (5,) and vector[-1] == 0

    def test_a_device_that_would_count_twice_is_refused(self) -> None:
        with pytest.raises(SecureAggregationError, match="weight 2 was given with privacy=device, expected 1"):
            vector_of(self.REPLY, 2, 4, MASKED)


def test_noise_that_nobody_would_add_is_refused(
    config: RunConfig, federate: Federate, grid_for: Any, observed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan of noise under a mask is answered by nobody who masks nothing."""
    real = privacy_guard.PrivacyGuard.ask

    def ask(self: Any, plan: Plan, member: Any) -> Plan:
        self._config = RunConfig(**{**self._config.__dict__, "secure_aggregation": True})
        return real(self, plan, member)

    monkeypatch.setattr(privacy_guard.PrivacyGuard, "ask", ask)
    config = RunConfig(**{**config.__dict__, "secure_aggregation": False, "max_bad_rounds": 5})
    federate(config, grid_for(config))
    assert [r.answered for r in observed.reports] == [0, 0]
    assert "its reply would be seen without noise" in observed.text
