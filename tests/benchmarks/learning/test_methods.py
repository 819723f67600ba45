"""Each way of learning moves the weights as its formula says, counts what it takes, and goes on where it was killed."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.learning.crowd import Crowd
from benchmarks.learning.first_order import FirstOrder, add_lora, merge_lora
from benchmarks.learning.guarded import GuardedRounds
from benchmarks.learning.held import HeldRounds
from benchmarks.learning.lattice_rounds import LatticeRounds
from benchmarks.learning.learn import Budget, learn, passes_to
from benchmarks.learning.method import Cost, Method, Settings
from benchmarks.learning.methods import ALL, METHODS, STUDIES, directions_study
from benchmarks.learning.published import FzooSteps, GaussianSteps
from benchmarks.learning.rates import FixedRate, MeasuredRate
from benchmarks.learning.tasks import Task
from benchmarks.learning.variants import AveragedRounds, HardUtterances, MomentumRounds, UtteranceDirections
from server.messaging.validation import RoundInbox
from server.rounds.step_size import MeasuredStep
from zo_common.config.run import RunConfig
from zo_common.directions.seeds import client_seed, direction_seed
from zo_common.errors import ConfigError
from zo_common.estimator.curvature import Curvature
from zo_common.estimator.local_steps import LocalResult
from zo_common.wire.plan import Reply, Status

BIAS = "*encoder.*out_proj.bias,*output_dense.bias"
BASE = Settings("x", BIAS, learning_rate=0.05, queries=4, epsilon=1e-2, batch_size=2, devices=3)
HAS_PEFT = importlib.util.find_spec("peft") is not None


def _weights(crowd: Crowd, part: str = "out_proj.bias") -> torch.Tensor:
    return torch.cat([p.detach().flatten() for n, p in sorted(crowd.model.named_parameters()) if n.endswith(part)])


def _rounds(crowd: Crowd, kind: type[LatticeRounds] = LatticeRounds, **changes: Any) -> LatticeRounds:
    settings = replace(BASE, **changes)
    return kind(crowd, settings, FixedRate(settings.learning_rate, settings.schedule, 4))


class TestLatticeRounds:
    def test_a_round_is_fedavg_of_the_projected_gradients(self, crowd: Crowd) -> None:
        method = _rounds(crowd)
        before = method.state_of_weights.checksum()
        measured = [method.measure(d, client_seed(0, 1, d), 0.0).projected_grads[0] for d in range(3)]
        assert method.state_of_weights.checksum() == before

        cost = method.round(1)

        # three utterances each: a third of the mean over four directions
        expected = [np.float32(-np.float64(np.float32(0.05)) / 3 * g.astype(np.float64) / 4) for g in measured]
        assert np.array_equal(np.stack([c.coefficients[0] for c in method.rounds[0]]), np.stack(expected))
        assert method.state_of_weights.checksum() != before
        assert cost.forwards == cost.passes == 3 * 4 * 2 and cost.backwards == 0
        assert (cost.up, cost.down) == (51 + 4 * 4, 59)

    @pytest.mark.parametrize(("estimator", "passes"), [("leave-one-out", 4), ("one-sided", 5), ("two-sided", 8)])
    def test_passes_are_counted_by_estimator_and_local_steps(self, crowd: Crowd, estimator: Any, passes: int) -> None:
        assert _rounds(crowd, estimator=estimator, local_steps=2).round(1).forwards == 3 * 2 * passes * 2

    def test_a_run_goes_on_from_its_state_with_the_same_bits(self, task: Task) -> None:
        whole = _rounds(Crowd(task, 3))
        for number in (1, 2, 3):
            whole.round(number)
        first = _rounds(Crowd(task, 3))
        first.round(1)
        second = _rounds(Crowd(task, 3))

        second.restore(first.state())
        assert second.state_of_weights.checksum() == first.state_of_weights.checksum()
        for number in (2, 3):
            second.round(number)

        assert second.state_of_weights.checksum() == whole.state_of_weights.checksum()


class TestHeldRounds:
    def test_steps_see_the_held_weights_and_all_else_float32(self, whisper_task: Task) -> None:
        settings = replace(BASE, tensors="encoder-residual-bias", tail_tokens=64)
        rate = FixedRate(1e-3, "constant", 4)
        exact = GuardedRounds(Crowd(whisper_task, 3), settings, rate)
        held = HeldRounds(Crowd(whisper_task, 3), settings, rate, precision="bfloat16")
        trained = held.state_of_weights.exponents
        frozen = {n: p.clone() for n, p in held.crowd.model.named_parameters() if n not in trained}

        exact.round(1)
        held.round(1)

        assert all(torch.equal(p, dict(held.crowd.model.named_parameters())[n]) for n, p in frozen.items())
        one, two = (np.concatenate([c.coefficients for c in m.rounds[0]]) for m in (exact, held))
        assert not np.array_equal(one, two)
        assert held.state_of_weights.checksum() != exact.state_of_weights.checksum()


class TestGuardedRounds:
    def _guarded(self, task: Task, rate: float) -> GuardedRounds:
        class Rate(FixedRate):
            def rate_of_round(self, number: int, results: Any) -> float:
                return rate

        return GuardedRounds(Crowd(task, 3), BASE, Rate(1.0, "constant", 16))

    def test_bad_rounds_are_undone_and_the_step_is_halved_until_the_run_ends(self, task: Task) -> None:
        method = self._guarded(task, -2.0)  # up the gradient
        start = method.state_of_weights.checksum()
        costs = [method.round(number) for number in range(1, 17)]
        method.finish()

        assert method.state_of_weights.checksum() == start
        assert method.step_of(1, ()) == -2.0 / 8  # three checks, then no more rounds
        assert len({cost.passes for cost in costs}) == 1
        assert len(method.rounds) == 12 + 3

    def test_good_rounds_stay_and_a_run_goes_on_from_its_state(self, task: Task) -> None:
        whole, first, second = (self._guarded(task, 0.01) for _ in range(3))
        for number in range(1, 9):
            whole.round(number)
        for number in range(1, 6):
            first.round(number)
        second.restore(first.state())
        for number in range(6, 9):
            second.round(number)
        whole.finish()
        second.finish()

        assert second.state_of_weights.checksum() == whole.state_of_weights.checksum()
        assert whole._measure().mean() <= whole._best.mean()


class TestVariants:
    def test_the_mean_of_the_last_rounds(self, task: Task) -> None:
        crowd = Crowd(task, 3)
        method = _rounds(crowd, AveragedRounds, extra=(("average", 2.0),))
        seen = []
        for number in (1, 2, 3):
            method.round(number)
            seen.append(_weights(crowd).clone())
        method.finish()

        assert torch.allclose(_weights(crowd), (seen[1] + seen[2]) / 2, atol=3e-6)  # three grid units
        assert not torch.allclose(_weights(crowd), seen[2], atol=1e-5)

    def test_momentum_is_a_heavy_ball(self, task: Task) -> None:
        crowd = Crowd(task, 3)
        method = _rounds(crowd, MomentumRounds, extra=(("momentum", 0.5),))
        start = _weights(crowd).clone()
        method.round(1)
        first = _weights(crowd) - start
        middle = _weights(crowd).clone()
        method.round(2)

        plain = _rounds(Crowd(task, 3))
        plain.apply(method.rounds[1])
        fresh = _weights(plain.crowd) - start
        assert torch.allclose(_weights(crowd) - middle, 0.5 * fresh + 0.5 * first, atol=2e-5)

        resumed = _rounds(Crowd(task, 3), MomentumRounds, extra=(("momentum", 0.5),))
        resumed.restore(method.state())
        assert resumed.state_of_weights.checksum() == method.state_of_weights.checksum()

    def test_every_utterance_has_directions_of_its_own(self, crowd: Crowd) -> None:
        method = _rounds(crowd, UtteranceDirections)

        cost = method.round(1)

        seeds = [c.seed for c in method.rounds[0]]
        assert len(set(seeds)) == 3 * 2 and cost.forwards == 3 * 2 * 4
        assert cost.up == 51 + 4 * 4 * 2

    def test_what_is_heard_without_error_is_left_out(self, crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
        method = _rounds(crowd, HardUtterances, batch_size=1, extra=(("every", 2.0),))
        monkeypatch.setattr(method, "_with_errors", lambda share: [2])

        cost = method.round(1)

        assert [len(share) for share in crowd.shares] == [1, 1, 1]
        assert cost.forwards == 3 * 3 * 2 + 3 * 4
        monkeypatch.setattr(method, "_with_errors", lambda share: pytest.fail("transcribed too early"))
        assert method.round(2).forwards == 3 * 4

    def test_less_than_a_batch_of_errors_leaves_all_in(self, whisper_crowd: Crowd) -> None:
        method = _rounds(whisper_crowd, HardUtterances, batch_size=3)

        assert method._with_errors(whisper_crowd.shares[0]) == [0, 1, 2]


class TestPublished:
    def test_zo_asr_takes_the_sum_where_mezo_takes_the_mean(self, task: Task) -> None:
        moved = []
        for total in (False, True):
            crowd = Crowd(task, 3)
            method = GaussianSteps(crowd, BASE, total=total)
            before = _weights(crowd).clone()
            seed = client_seed(0, 1, 0)
            chosen = crowd.draw(0, seed, 0, 2)
            method.step(method._losses(crowd.batch(0, chosen)), seed)
            moved.append(_weights(crowd) - before)

        assert torch.allclose(moved[1], 4 * moved[0], rtol=0.05, atol=1e-6)
        assert float(moved[0].abs().max()) > 1e-5

    def test_two_sided_passes_and_the_state(self, task: Task) -> None:
        method = GaussianSteps(Crowd(task, 3), BASE)
        assert method.round(1) == Cost(3 * 8 * 2)
        other = GaussianSteps(Crowd(task, 3), BASE)
        other.restore(method.state())
        assert torch.equal(_weights(other.crowd), _weights(method.crowd))

    def test_fzoo_divides_by_the_deviation_of_the_losses(self, crowd: Crowd) -> None:
        method = FzooSteps(crowd, BASE)
        losses = np.array([2.0, 2.5, 1.5, 2.2])

        found = method.coefficients((losses - 2.1) / BASE.epsilon)

        expected = -0.05 * (losses - 2.1) / BASE.epsilon / (4 * np.std(losses, ddof=1))
        assert np.allclose(found, expected, rtol=1e-6)
        assert method.coefficients(np.ones(4)) == [0.0] * 4

    def test_fzoo_steps_and_goes_on(self, task: Task) -> None:
        settings = replace(BASE, learning_rate=1e-5)
        method = FzooSteps(Crowd(task, 3), settings)
        assert method.round(1) == Cost(3 * 5 * 2)
        other = FzooSteps(Crowd(task, 3), settings)
        other.restore(method.state())
        assert torch.equal(_weights(other.crowd), _weights(method.crowd))


class TestFirstOrder:
    def test_fedavg_is_the_mean_of_the_devices_own_steps(self, task: Task) -> None:
        settings = replace(BASE, tensors="bias", local_steps=2, learning_rate=1e-3)
        crowd = Crowd(task, 3)
        cost = FirstOrder(crowd, settings).round(1)

        alone = []
        for device in range(3):
            other = Crowd(task, 3)
            FirstOrder(other, settings)._local(device, client_seed(0, 1, device))
            alone.append(_weights(other))
        assert torch.allclose(_weights(crowd), torch.stack(alone).mean(dim=0), atol=1e-7)
        size = 4 * sum(p.numel() for n, p in crowd.model.named_parameters() if n.endswith(".bias"))
        assert cost == Cost(12, 12, size, size) and cost.passes == 36

    def test_micro_batches_and_recomputed_layers_change_memory_alone(self, whisper_task: Task) -> None:
        moved = []
        for extra in ((), (("micro", 1.0), ("checkpointing", 1.0))):
            crowd = Crowd(whisper_task, 3)
            FirstOrder(crowd, replace(BASE, tensors="all", learning_rate=1e-3, extra=extra)).round(1)
            moved.append(_weights(crowd, "fc1.weight"))

        # Adam's first step is the gradient's sign, which rounding turns where a gradient is next to nothing
        assert float(((moved[0] - moved[1]).abs() < 1e-4).float().mean()) > 0.97
        assert float((moved[0] - _weights(Crowd(whisper_task, 3), "fc1.weight")).abs().mean()) > 5e-4

    def test_one_device_keeps_its_optimiser(self, task: Task) -> None:
        settings = replace(BASE, devices=1, learning_rate=1e-3)
        whole = FirstOrder(Crowd(task, 1), settings)
        whole.round(1)
        resumed = FirstOrder(Crowd(task, 1), settings)
        resumed.restore(whole.state())
        assert whole.round(2) == resumed.round(2) == Cost(2, 2)
        assert torch.equal(_weights(whole.crowd), _weights(resumed.crowd))

    @pytest.mark.skipif(not HAS_PEFT, reason="needs the extra 'learning'")
    def test_adapters_change_nothing_until_they_are_trained_and_end_in_the_weights(self, whisper_task: Task) -> None:
        crowd = Crowd(whisper_task, 3)
        before = crowd.dev_loss()
        method = FirstOrder(crowd, replace(BASE, tensors="lora", learning_rate=1e-2))
        assert crowd.dev_loss() == pytest.approx(before, abs=1e-6)
        assert all(w.shape[0] == 8 or w.shape[1] == 8 for w in method.weights.values())
        method.round(1)
        trained = crowd.dev_loss()
        method.finish()

        assert crowd.dev_loss() == pytest.approx(trained, abs=1e-5)
        assert abs(trained - before) > 1e-4

    @pytest.mark.skipif(HAS_PEFT, reason="peft is installed")
    def test_without_peft_the_remedy_is_named(self, crowd: Crowd) -> None:
        with pytest.raises(ConfigError, match=r"pip install 'federated-zo-asr\[learning\]'"):
            add_lora(crowd.model, 0)


class TestRates:
    def test_a_fixed_rate_falls_and_stays(self) -> None:
        rate = FixedRate(0.1, "linear", 4)

        assert [round(rate.rate_of_round(n, ()), 6) for n in (1, 2, 4, 9)] == [0.1, 0.075, 0.025, 0.025]

    def test_the_measured_rate_is_a_server_s_and_goes_on_where_it_was(self, crowd: Crowd, tmp_path: Path) -> None:
        config = RunConfig(num_queries=4, output=str(tmp_path))
        grads = np.arange(1.0, 5.0, dtype=np.float32)[None]
        results = [LocalResult(grads * (d + 1), (1.0,), Curvature(200.0, 30.0, 5.0, 1.5)) for d in range(3)]
        rate = MeasuredRate(config)
        replies = RoundInbox({}, 1e6)
        for d, result in enumerate(results):
            reply = Reply(Status.OK, 1, 0, d, 1, 0, 1, 0.5, result.projected_grads, curvature=result.curvature)
            replies.replies[d] = reply

        assert rate.rate_of_round(1, ()) == 0.0
        found = rate.rate_of_round(1, results)

        assert found == MeasuredStep(config).used(1, replies, 1) > 0
        again = MeasuredRate(config)
        again.restore(rate.state())
        assert again.rate_of_round(2, results) == rate.rate_of_round(2, results)


class TestLearn:
    def test_a_curve_from_the_base_to_the_budget(self, crowd: Crowd) -> None:
        run = learn(crowd, _rounds(crowd), Budget(4 * 24, points=2, words=True), say=lambda word: None)

        assert [passes for passes, _ in run.curve] == [0, 48, 96] == [passes for passes, _ in run.words]
        assert (run.rounds, run.cost.passes, run.ended) == (4, 96, "")
        assert run.curve[-1][1] == crowd.dev_loss() != run.curve[0][1]

    def test_a_killed_run_ends_as_one_that_was_not(self, task: Task, tmp_path: Path) -> None:
        budget, checkpoint = Budget(4 * 24, points=4), tmp_path / "run.pt"
        whole = learn(crowd := Crowd(task, 3), _rounds(crowd), budget, say=lambda word: None)

        def die(word: str) -> None:
            if word.startswith("round 3"):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            learn(crowd := Crowd(task, 3), _rounds(crowd), budget, checkpoint, die)
        again = learn(crowd := Crowd(task, 3), _rounds(crowd), budget, checkpoint, lambda word: None)

        assert (again.curve, again.cost, again.rounds) == (whole.curve, whole.cost, whole.rounds)

    def test_a_run_that_leaves_its_lattice_says_so(self, crowd: Crowd) -> None:
        run = learn(crowd, _rounds(crowd, learning_rate=1e6), Budget(96), say=lambda word: None)

        assert run.ended.startswith("round 1: ") and "lower the learning rate" in run.ended

    @pytest.mark.parametrize("loss", [2.1, float("nan"), float("inf")])
    def test_a_run_whose_loss_doubled_ends_there(
        self, crowd: Crowd, monkeypatch: pytest.MonkeyPatch, loss: float
    ) -> None:
        losses = iter([1.0, 1.9, loss, 3.0])
        monkeypatch.setattr(crowd, "dev_loss", lambda: next(losses))

        run = learn(crowd, _rounds(crowd), Budget(10 * 24, points=10), say=lambda word: None)

        assert run.ended == f"round 2: the loss rose from 1 to {loss:.3g}"
        assert (run.rounds, len(run.curve)) == (2, 4)

    def test_minutes_end_a_run(self, crowd: Crowd) -> None:
        assert learn(crowd, _rounds(crowd), Budget(10**6, minutes=1e-9), say=lambda word: None).rounds == 1

    @pytest.mark.parametrize(("loss", "passes"), [(2.0, 50.0), (1.5, 75.0), (1.0, 100.0), (0.9, None)])
    def test_passes_to_a_loss(self, loss: float, passes: float | None) -> None:
        assert passes_to([[0, 3.0], [100, 1.0], [200, 1.2]], loss) == passes


class TestEntries:
    @pytest.mark.parametrize("name", sorted(ALL))
    def test_every_entry_makes_a_method_that_runs(self, name: str, task: Task, whisper_task: Task) -> None:
        entry = ALL[name]
        if entry.settings.tensors == "lora" and not HAS_PEFT:
            pytest.skip("needs the extra 'learning'")
        assert entry.settings.method == name
        settings = replace(entry.settings, batch_size=1, devices=min(entry.settings.devices, 3), learning_rate=1e-5)
        settings = replace(settings, queries=min(settings.queries, 3))
        crowd = Crowd(whisper_task if settings.tensors == "lora" else task, settings.devices)

        method: Method = entry.make(crowd, settings, Budget(10))

        assert method.round(1).passes > 0
        method.finish()

    def test_a_study_measures_the_directions_it_names(self) -> None:
        for name, entry in directions_study().items():
            s = entry.settings
            assert name == f"directions-{s.devices * s.local_steps * s.queries}-{s.devices}-{s.local_steps}"
            assert s.queries >= 2
        assert set(STUDIES["variants"]).isdisjoint(METHODS)


def test_directions_differ_between_devices_and_rounds() -> None:
    seeds = {direction_seed(client_seed(0, r, d), 0, q) for r in (1, 2) for d in range(3) for q in range(4)}

    assert len(seeds) == 24


@pytest.mark.skipif(not HAS_PEFT, reason="needs the extra 'learning'")
def test_merging_without_adapters_does_nothing(crowd: Crowd) -> None:
    before = _weights(crowd).clone()
    merge_lora(crowd.model)
    assert torch.equal(_weights(crowd), before)
