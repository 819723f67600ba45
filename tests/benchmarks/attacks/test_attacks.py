"""The attacks: that what is composed is what a device sends, and known answers for perfect evidence and for none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_ctc import write_tiny_ctc

from benchmarks.attacks import compose, recorder, transcripts
from benchmarks.attacks.evidence import Gaussian, auc, found_at, interval, log_mean_exp, mixture
from benchmarks.attacks.membership import Population, private_attack, study, sums_attack
from benchmarks.attacks.settings import Settings
from benchmarks.attacks.slopes import Table, joined, measure_round, round_seed
from benchmarks.attacks.speech import Speech, speech
from benchmarks.attacks.table import folder_of, over_seeds
from client.device import private_steps as private_training
from client.device.engine import Engine
from zo_common.privacy import mechanism as privacy
from zo_common.privacy.mechanism import Mechanism
from zo_common.wire.plan import Plan, Status

POOL = 6


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    model = write_tiny_ctc(tmp_path_factory.mktemp("models") / "ctc", norm="layer")
    return Settings(
        model=str(model), trained_tensors="all", pool=POOL, rounds=2, queries=3, epsilon=1e-2, utterances=POOL, batch=3,
        cohorts=(2,), trials=2, candidates=3, targets=2, sizes=(1, 2), draws=2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def engine(settings: Settings) -> Engine:
    return Engine(settings.config)


@pytest.fixture(scope="module")
def spoken(engine: Engine, settings: Settings) -> Speech:
    return speech(engine, settings, 0)


@pytest.fixture(scope="module")
def table(engine: Engine, spoken: Speech, settings: Settings) -> Table:
    return joined([measure_round(engine, spoken, settings, 0, r) for r in (1, 2)])


def _plan(engine: Engine, settings: Settings, mechanism: Mechanism | None = None) -> Plan:
    seed = round_seed(0, 2)
    estimator = settings.estimator
    return Plan(2, seed, 5, engine.base_id, 0, 1, settings.batch, 1e-4, estimator, (), mechanism)


@pytest.fixture
def trained(engine: Engine, spoken: Speech) -> Callable[[Plan], Any]:
    """A device's reply to a plan, with the directions of the second round at the weights of the first."""

    def train(plan: Plan) -> Any:
        reply = engine.train(replace(plan, server_round=1), spoken.pool)
        assert reply.status is Status.OK
        return reply

    return train


class TestComposition:
    def test_an_ordinary_device_sends_what_is_composed(
        self, engine: Engine, spoken: Speech, settings: Settings, table: Table
    ) -> None:
        plan = _plan(engine, settings)
        watched = recorder.Listened(spoken.pool.examples, spoken.pool.extractor)
        reply = engine.train(replace(plan, server_round=1), watched)
        drawn = [i for i in _subsets(POOL, settings.batch) if _close(reply, compose.plain_scalars(table.pool[1], i))]
        assert len(drawn) == 1  # exactly one batch explains the scalars and the loss
        heard = sum(spoken.pool.examples[i].seconds for i in drawn[0])
        assert watched.seconds_used == [pytest.approx(heard)]

    def test_a_device_under_a_guarantee_sends_what_is_composed_to_the_bit(
        self,
        engine: Engine,
        settings: Settings,
        table: Table,
        trained: Callable[[Plan], Any],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        mechanism = Mechanism("example", compose.usual_norm(table.pool[:, :-1]), 0.7, POOL)
        sample = [0, 2, 3, 5]
        monkeypatch.setattr(private_training, "poisson_subset", lambda *rate: sample)
        monkeypatch.setattr(privacy, "discrete_gaussians", lambda count, sigma: [sigma // 3] * count)

        reply = trained(_plan(engine, settings, mechanism))
        rows, columns = table.pool[1, :-1], np.arange(POOL)
        composed, _ = compose.private_scalars(mechanism, rows, columns, settings.batch, sample)

        assert np.array_equal(reply.projected_grads[0], composed.astype(np.float32))

    def test_samples_are_drawn_at_the_devices_rate(self) -> None:
        sizes = [len(compose.draw(3, 12)) for _ in range(2000)]
        assert np.mean(sizes) == pytest.approx(3, abs=0.2)
        assert min(sizes) == 0

    def test_the_table_knows_the_true_transcript(self, table: Table, settings: Settings) -> None:
        for target in range(settings.targets):
            assert np.allclose(table.guesses[:, :, target, target], table.pool[:, :, target], rtol=1e-9)
        assert not np.allclose(table.guesses[:, :, 0, 1], table.pool[:, :, 0])

    def test_members_are_on_the_first_device_and_others_nowhere(self) -> None:
        generator = np.random.default_rng(0)
        inside, outside = (compose.devices(generator, 4, 9, (50, 3, 7), member=m) for m in (True, False))
        assert (inside.slots[np.arange(50), 0, inside.place] == 4).all()
        assert (inside.slots == 4).sum() == 50
        assert not (outside.slots == 4).any()
        assert set(np.unique(outside.slots)) == set(range(9)) - {4}

    def test_a_batch_is_of_different_slots(self) -> None:
        chosen = compose.batches(np.random.default_rng(0), (20, 2, 8), 5)
        assert chosen.shape == (20, 2, 5)
        assert all(len(set(row)) == 5 for row in chosen.reshape(-1, 5))


def _subsets(count: int, size: int) -> list[np.ndarray]:
    from itertools import combinations

    return [np.array(chosen) for chosen in combinations(range(count), size)]


def _close(reply: Any, composed: np.ndarray) -> bool:
    sent = np.append(reply.projected_grads[0], np.float32(reply.loss))
    return np.allclose(sent, composed, rtol=1e-3, atol=1e-4)


class TestEvidence:
    def test_perfect_evidence_none_and_the_wrong_way_round(self) -> None:
        generator = np.random.default_rng(0)
        same = generator.standard_normal((2, 4000))
        assert auc(np.array([3.0, 4.0]), np.array([1.0, 2.0])) == 1
        assert auc(np.array([1.0]), np.array([2.0])) == 0
        assert auc(np.zeros(5), np.zeros(3)) == 0.5
        assert auc(*same) == pytest.approx(0.5, abs=0.03)

    def test_two_gaussians_a_deviation_apart(self) -> None:
        generator = np.random.default_rng(1)
        others, members = generator.standard_normal((2, 200, 50))
        low, high = interval(members + 1, others, generator)
        assert auc((members + 1).ravel(), others.ravel()) == pytest.approx(0.7602, abs=0.01)  # Φ(1/√2)
        assert low < 0.7602 < high < low + 0.05
        assert found_at((members + 1).ravel(), others.ravel(), 0.01) == pytest.approx(0.0923, abs=0.02)

    def test_a_log_density_is_that_of_the_normal_distribution(self) -> None:
        cov = np.array([[2.0, 0.5], [0.5, 1.0]])
        x, mean = np.array([[1.0, -1.0], [0.0, 3.0]]), np.array([0.5, 0.5])
        found = Gaussian.of(mean, cov).log_density(x)
        centred = x - mean
        expected = -0.5 * np.einsum("ni,ij,nj->n", centred, np.linalg.inv(cov), centred)
        assert np.allclose(found, expected - 0.5 * np.log(np.linalg.det(cov)))

    def test_directions_without_variance_say_nothing(self) -> None:
        flat = Gaussian.of(np.zeros(2), np.array([[1.0, -1.0], [-1.0, 1.0]]))  # the two always add up to zero
        assert flat.log_density(np.array([5.0, 5.0])) == flat.log_density(np.zeros(2))

    def test_mixtures(self) -> None:
        one = np.log(np.array([[2.0, 4.0]]))
        assert np.exp(log_mean_exp(one, 1)) == pytest.approx(3)
        assert np.exp(mixture(one[0, :1], one[0, 1:], 0.25)) == pytest.approx(3.5)
        assert mixture(one[0, :1], one[0, 1:], 1) == one[0, 0]


def _loud(settings: Settings, columns: int = 20) -> tuple[np.ndarray, Settings]:
    """Slopes of which one utterance's is in no other's direction."""
    chosen = replace(settings, pool=columns, queries=columns, utterances=4, batch=2, trials=20)
    rows = np.stack([np.eye(columns) * 10.0] * settings.rounds)
    return rows + 0.01 * np.random.default_rng(0).standard_normal(rows.shape), chosen


class TestMembership:
    def test_alone_and_unlike_all_others_is_found(self, settings: Settings) -> None:
        rows, chosen = _loud(settings)
        generator = np.random.default_rng(0)
        found: Any = study(sums_attack(rows, chosen, 1, generator, None), chosen, generator)
        assert found["step"]["auc"] > 0.99
        assert found["rounds"][-1]["auc"] > 0.7  # who is in no batch cannot be found

    @pytest.mark.parametrize("rest_known", [False, True])
    def test_noise_without_end_hides_it(self, settings: Settings, rest_known: bool) -> None:
        rows, chosen = _loud(settings)
        generator = np.random.default_rng(0)
        strong, weak = (Mechanism("example", 10.0, noise, 4) for noise in (1e3, 1e-2))
        hidden: Any = study(private_attack(rows, chosen, strong, generator, knows_rest=rest_known), chosen, generator)
        open_: Any = study(private_attack(rows, chosen, weak, generator, knows_rest=rest_known), chosen, generator)
        assert hidden["rounds"][-1]["auc"] == pytest.approx(0.5, abs=0.1)
        assert open_["rounds"][-1]["auc"] > 0.8

    def test_device_level_noise_hides_it_in_a_sum(self, settings: Settings) -> None:
        rows, chosen = _loud(settings)
        generator = np.random.default_rng(0)
        attack = sums_attack(rows, chosen, 2, generator, (10.0, 1e3))
        found: Any = study(attack, chosen, generator)
        assert found["step"]["auc"] == pytest.approx(0.5, abs=0.15)

    def test_the_attacker_knows_the_moments_of_all_others(self) -> None:
        rows = np.random.default_rng(0).standard_normal((3, 10))
        known = Population.without(rows, 4)
        others = rows[:, [i for i in range(10) if i != 4]]
        assert np.allclose(known.mean, others.mean(axis=1))
        assert np.allclose(known.covariance, np.cov(others, bias=True))


class TestTranscripts:
    def test_alone_with_its_recording_the_sentence_is_first(self, table: Table, settings: Settings) -> None:
        found = transcripts.guess(table, settings, 1, None, np.random.default_rng(0))
        assert found["recording"]["first"] == {"mean_rank": 1.0, "top_1": 1.0, "reciprocal": 1.0}

    def test_noise_without_end_leaves_chance(self, table: Table, settings: Settings) -> None:
        many = replace(settings, draws=300)
        mechanism = Mechanism("example", 1.0, 1e4, 1)
        found = transcripts.guess(table, many, 1, mechanism, np.random.default_rng(0))
        chance = transcripts.chance(settings.candidates)
        for attacker in ("recording", "voice"):
            assert found[attacker]["all"]["mean_rank"] == pytest.approx(chance["mean_rank"], abs=0.2)

    def test_ranks_share_ties_and_count_from_one(self) -> None:
        scores = np.array([[3.0, 2.0, 1.0], [1.0, 1.0, 1.0]])
        assert transcripts.ranks_of(scores, 0).tolist() == [1.0, 2.0]
        assert transcripts.ranks_of(scores, 2).tolist() == [3.0, 2.0]
        assert transcripts.chance(2) == {"mean_rank": 1.5, "top_1": 0.5, "reciprocal": 0.75}


class TestRecorder:
    def test_no_length_depends_on_the_recordings(self, engine: Engine, spoken: Speech, settings: Settings) -> None:
        order = sorted(range(POOL), key=lambda index: spoken.pool.examples[index].seconds)
        guarantee = Mechanism("example", 10.0, 1.0, 2)
        devices = [
            replace(spoken.pool, examples=tuple(spoken.pool.examples[i] for i in order[a : a + 3])) for a in (0, 3)
        ]
        assert devices[0].seconds < devices[1].seconds
        short, long = (recorder.lengths(engine, data, settings, i, guarantee) for i, data in enumerate(devices))
        assert short == long
        assert short["reply"] == short["reply, example-level"] == 51 + 4 * settings.queries
        assert short["reply, sign-vote"] == 51 + 1
        assert short["plan, example-level"] == short["plan"] + 21


def test_rows_over_seeds_are_spreads() -> None:
    rows = [{"seed": s, "membership": {"sum-1": {"rounds": [{"auc": 0.5 + s}]}}} for s in (0, 1, 2)]
    found = over_seeds(rows)["membership"]["sum-1"]["rounds"][0]["auc"]
    assert (found["mean"], found["std"]) == (pytest.approx(1.5), pytest.approx(1.0))


def test_settings_have_a_folder_each(tmp_path: Path) -> None:
    first, second = (folder_of(tmp_path, {"pool": pool}) for pool in (1, 2))
    assert first != second and first == folder_of(tmp_path, {"pool": 1})
