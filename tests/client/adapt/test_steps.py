"""Adaptation stays until it is undone, to the bit, and its record gives the same weights again."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tiny_ctc import NORMS, noise_waves, tiny_ctc
from torch import nn
from transformers import Wav2Vec2FeatureExtractor

from client.adapt.record import (
    AdaptationRecord,
    Layout,
    decode_adaptation,
    encode_adaptation,
    undo,
)
from client.adapt.steps import Plateau, adapt
from zo_common.errors import ConfigError, NonFiniteLoss
from zo_common.estimator.local_steps import run_local_steps
from zo_common.estimator.settings import EstimatorConfig
from zo_common.estimator.step import LossFn
from zo_common.lattice.state import LatticeState
from zo_common.ledger.replay import apply_all
from zo_common.models.ctc.loss import AdaptationLoss, ctc_batch

Models = Callable[..., nn.Module]
Reader = Callable[[nn.Module], dict[str, bytes]]
CONFIG = EstimatorConfig(num_queries=3, epsilon=1e-3)
RATE = 3e-2
LAYOUTS: list[Layout] = ["float32", "float16", "sign"]


def _loss_of_step(model: nn.Module, seed: int = 0) -> Callable[[int], LossFn]:
    inputs = torch.randn(6, 3, generator=torch.Generator().manual_seed(seed))
    return lambda step: lambda: (model(inputs) - inputs[:, :2].sin()).square().mean(dim=1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_record_is_what_was_applied(small_model: Models, weight_bytes: Reader, layout: Layout) -> None:
    model, other = small_model(), small_model()
    state, elsewhere = LatticeState(model, "all", "rms", threads=1), LatticeState(other, "all", "rms", threads=2)
    before = weight_bytes(model)

    record = adapt(state, _loss_of_step(model), 2**64 - 1, 5, CONFIG, RATE, layout=layout)
    apply_all(elsewhere, decode_adaptation(encode_adaptation(record)).updates())

    assert weight_bytes(other) == weight_bytes(model) != before
    assert (record.steps, record.layout, record.end) == (5, layout, state.checksum())
    undo(state, record)
    assert weight_bytes(model) == before
    assert state.checksum() == record.start


def test_full_precision_is_the_same_as_local_steps(small_model: Models) -> None:
    model = small_model()
    state = LatticeState(model, "all", threads=1)

    expected = run_local_steps(state, _loss_of_step(model), 9, 4, CONFIG, RATE)
    record = adapt(state, _loss_of_step(model), 9, 4, CONFIG, RATE)

    np.testing.assert_array_equal(record.projected_grads, expected.projected_grads)


def test_narrow_layouts_steer_by_what_they_hold(small_model: Models) -> None:
    model = small_model()
    state = LatticeState(model, "all", threads=1)
    records: dict[Layout, AdaptationRecord] = {}
    for layout in LAYOUTS:
        records[layout] = adapt(state, _loss_of_step(model), 9, 4, CONFIG, RATE, layout=layout)
        undo(state, records[layout])
    full, half, sign = (records[layout].projected_grads for layout in LAYOUTS)

    np.testing.assert_array_equal(half[0], full[0].astype(np.float16).astype(np.float32))
    assert not np.array_equal(half[1], full[1].astype(np.float16).astype(np.float32))  # it went another way since
    assert set(np.abs(sign).ravel()) == {np.float32(np.abs(full[0].astype(np.float64)).mean())}
    np.testing.assert_array_equal(np.sign(sign[0]), np.sign(full[0]))


def test_the_magnitude_may_be_given(small_model: Models) -> None:
    model = small_model()
    state = LatticeState(model, "all", threads=1)

    record = adapt(state, _loss_of_step(model), 9, 2, CONFIG, RATE, layout="sign", magnitude=0.1)

    assert set(np.abs(record.projected_grads).ravel()) == {np.float32(0.1)}


@pytest.mark.parametrize("norm", NORMS)
def test_episodes_over_many_utterances_always_return_to_the_base(norm: str, weight_bytes: Reader) -> None:
    model = tiny_ctc(norm=norm)
    state = LatticeState(model, "norms+features", threads=1)
    base, bits = state.checksum(), weight_bytes(model)
    extractor = Wav2Vec2FeatureExtractor()
    ends = set()

    for utterance in range(9):
        batch = ctc_batch(extractor, noise_waves(1600 + 100 * utterance, seed=utterance))
        record = adapt(
            state,
            lambda step, batch=batch: AdaptationLoss(model, batch).freeze(),
            utterance,
            2,
            EstimatorConfig(num_queries=2),
            1e-3,
            layout=LAYOUTS[utterance % 3],
        )
        ends.add(state.checksum())
        assert record.end == state.checksum() != base
        undo(state, record)
        assert state.checksum() == base

    assert len(ends) == 9
    assert weight_bytes(model) == bits


def test_adaptation_lowers_its_objective() -> None:
    model = tiny_ctc()
    state = LatticeState(model, "norms", threads=1)
    batch = ctc_batch(Wav2Vec2FeatureExtractor(), noise_waves(1600))
    fixed = AdaptationLoss(model, batch).freeze()
    with torch.inference_mode():
        before = float(fixed())

    adapt(state, lambda step: fixed, 1, 12, EstimatorConfig(num_queries=4), 0.02)

    with torch.inference_mode():
        assert float(fixed()) < before - 0.01


def test_records_are_undone_in_any_order(small_model: Models, weight_bytes: Reader) -> None:
    model = small_model()
    state = LatticeState(model, "all", threads=1)
    before = weight_bytes(model)

    records = [adapt(state, _loss_of_step(model, seed), seed, 3, CONFIG, RATE) for seed in range(4)]
    for index in (1, 3, 0, 2):
        undo(state, records[index])

    assert [r.start for r in records[1:]] == [r.end for r in records[:-1]]
    assert weight_bytes(model) == before


@pytest.mark.parametrize("failing_step", [0, 2])
@pytest.mark.parametrize("place", ["batch", "nan", "callback"])
def test_any_failure_undoes_the_steps_taken(
    small_model: Models, weight_bytes: Reader, failing_step: int, place: str
) -> None:
    model = small_model()
    state = LatticeState(model, "all", threads=1)
    before, good = weight_bytes(model), _loss_of_step(model)

    def loss_of_step(step: int) -> LossFn:
        if step == failing_step and place == "batch":
            raise KeyboardInterrupt
        if step == failing_step and place == "nan":
            return lambda: good(step)() * float("nan")
        return good(step)

    def on_step(step: int, loss: float) -> None:
        if step == failing_step and place == "callback":
            raise KeyboardInterrupt

    with pytest.raises(NonFiniteLoss if place == "nan" else KeyboardInterrupt):
        adapt(state, loss_of_step, 9, 4, CONFIG, RATE, on_step=on_step)

    assert weight_bytes(model) == before


def test_no_steps_are_a_record_of_nothing(small_model: Models) -> None:
    model = small_model()
    state = LatticeState(model, "all", threads=1)

    record = adapt(state, _loss_of_step(model), 9, 0, CONFIG, RATE)

    assert record.start == record.end == state.checksum()
    assert decode_adaptation(encode_adaptation(record)) == record
    apply_all(state, record.updates())
    assert state.checksum() == record.start


def test_it_stops_where_the_objective_stops_falling(small_model: Models) -> None:
    model = small_model()
    state = LatticeState(model, "all", threads=1)
    seen: list[tuple[int, float]] = []
    losses = [5.0, 4.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0]

    def loss_of_step(step: int) -> LossFn:
        return lambda: torch.full((2,), losses[step])

    record = adapt(
        state, loss_of_step, 9, 8, CONFIG, RATE, patience=2, on_step=lambda step, loss: seen.append((step, loss))
    )

    # running means from the second on: 4.5, 3.5, 3, 3, 3; the third of them is the last new minimum
    assert seen == list(enumerate(losses[:6]))
    assert record.steps == 6


def test_plateaus_by_hand() -> None:
    assert [Plateau(0).reached(x) for x in (1.0, 2.0, 3.0)] == [False] * 3
    one = Plateau(1)
    assert [one.reached(x) for x in (3.0, 2.0, 2.0)] == [False, False, True]
    noisy = Plateau(3)
    assert not any(noisy.reached(x) for x in (5.0, 6.0, 4.0, 5.0, 3.0, 4.0, 2.0, 3.0))
    with pytest.raises(ConfigError, match="patience is -1"):
        Plateau(-1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": -1}, "steps is -1"),
        ({"steps": 65536}, "steps is 65536"),
        ({"learning_rate": 0.0}, r"learning-rate is 0\.0"),
        ({"learning_rate": float("nan")}, "learning-rate is nan"),
        ({"patience": -1}, "patience is -1"),
        ({"magnitude": -1.0}, r"magnitude is -1\.0"),
        ({"magnitude": float("nan")}, "magnitude is nan"),
        ({"layout": "float8"}, "layout is 'float8', expected one of float32, float16, sign"),
    ],
)
def test_arguments_are_checked(small_model: Models, changes: dict[str, object], message: str) -> None:
    model = small_model()
    state = LatticeState(model, "all", threads=1)
    arguments = {"seed": 1, "steps": 1, "config": CONFIG, "learning_rate": RATE} | changes

    with pytest.raises(ConfigError, match=message):
        adapt(state, _loss_of_step(model), **arguments)


def test_records_add_up_in_any_order(small_model: Models, weight_bytes: Reader) -> None:
    model, other = small_model(), small_model()
    state, elsewhere = LatticeState(model, "all", threads=1), LatticeState(other, "all", threads=1)
    first, second = (adapt(state, _loss_of_step(model), seed, 2, CONFIG, RATE) for seed in (1, 2))

    for record in (second, first):
        apply_all(elsewhere, record.updates())

    assert weight_bytes(other) == weight_bytes(model)
