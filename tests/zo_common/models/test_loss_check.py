"""Of losses that are wrong in a known way the check takes the cheapest that fits, or names it where another was set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from zo_common.errors import LossCheckFailed, NonFiniteLoss
from zo_common.lattice.state import LatticeState
from zo_common.models.loss_check import FIRST_EPSILON, Asked, LossChoice, check_loss, utterances_for
from zo_common.models.loss_probes import MOST_PASSES, REFERENCE, Setting

UTTERANCES = 4
WEIGHTS = 300


class _Weights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(0.1 * torch.randn(WEIGHTS, generator=torch.Generator().manual_seed(3)))


@dataclass
class Known:
    """L_b = 1 + slope·(a_b·w) + curvature/2·|w − w₀|², in float64; each tail adds what is wrong with it.

    Attributes:
        offsets: tail → nats that it adds to each utterance.
        turns: tail → how much of another gradient, as long as the true one, it adds.
        noise: precision → nats of noise, another at every pass; "held" of frozen weights as the model holds them.
        held: how much of another gradient, as long as the true one, frozen weights add as the model holds them.
    """

    model: _Weights
    tails: tuple[int, ...] = (32, 64, 128, 256)
    offsets: dict[int | None, tuple[float, ...]] = field(default_factory=dict)
    turns: dict[int | None, float] = field(default_factory=dict)
    noise: dict[str, float] = field(default_factory=dict)
    held: float = 0.0
    slope: float = 1.0
    curvature: float = 0.0
    passes: Counter[Setting] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(5)
        self._start = self.model.w.detach().double().clone()
        self._a = torch.randn(UTTERANCES, WEIGHTS, generator=generator, dtype=torch.float64)
        self._b = torch.randn(UTTERANCES, WEIGHTS, generator=generator, dtype=torch.float64)
        self._rng = np.random.default_rng(0)

    def loss(self, setting: Setting) -> Callable[[], torch.Tensor]:
        """As `Trials.loss`."""

        def losses() -> torch.Tensor:
            self.passes[setting] += 1
            moved = self.model.w.detach().double() - self._start
            found = 1 + self.slope * (self._a @ moved) + self.curvature / 2 * moved.square().sum()
            if setting != REFERENCE:
                turn = self.turns.get(setting.tail_tokens, 0.0) + self.held * setting.held
                found += turn * self.slope * (self._b @ moved)
                found += torch.tensor(self.offsets.get(setting.tail_tokens, (0.0,) * UTTERANCES))
            size = self.noise.get("float32" if setting == REFERENCE else setting.precision, 0.0)
            size += self.noise.get("held", 0.0) * setting.held
            return found + size * torch.from_numpy(self._rng.standard_normal(UTTERANCES))

        return losses


def _check(known: Known, **asked: object) -> LossChoice:
    """Runs the check; the weights must be as before whatever comes of it."""
    state = LatticeState(known.model, "all", threads=1)
    before = state.checksum()
    try:
        return check_loss(state, known, Asked(**asked))  # type: ignore[arg-type]
    finally:
        assert state.checksum() == before


class TestTail:
    def test_the_cheapest_is_taken_where_it_is_right(self) -> None:
        choice = _check(Known(_Weights()))

        assert choice == LossChoice(32, "float32", FIRST_EPSILON, choice.reasons)
        assert "tail-tokens 32: loss within 0.0%" in choice.sentence
        assert "epsilon 0.000977: differences stand far above rounding noise" in choice.sentence

    def test_one_utterance_of_four_that_is_off_by_nats_is_enough_to_refuse(self) -> None:
        known = Known(_Weights(), offsets={32: (0.0, 0.0, 0.0, 2.1)})

        choice = _check(known)

        assert choice.tail_tokens == 64
        assert "not tail-tokens 32: loss within 52.5% (worst utterance 2.1 nats)" in choice.sentence

    def test_a_right_loss_with_a_wrong_slope_is_refused(self) -> None:
        assert _check(Known(_Weights(), turns={32: 0.5, 64: 0.3, 128: 0.05})).tail_tokens == 128

    def test_the_whole_window_is_taken_where_every_tail_is_wrong(self) -> None:
        known = Known(_Weights(), offsets=dict.fromkeys((32, 64, 128, 256), (0.2,) * UTTERANCES))

        choice = _check(known)

        assert choice.tail_tokens is None
        assert "the whole window: loss within 0.0%" in choice.sentence

    @pytest.mark.parametrize("fits", [64, 256, None])
    def test_a_fixed_one_that_is_wrong_names_what_fits(self, fits: int | None) -> None:
        wrong = [tail for tail in (2, 32, 64, 128, 256) if fits is None or tail < fits]
        known = Known(_Weights(), offsets=dict.fromkeys(wrong, (0.2,) * UTTERANCES))

        said = "auto, which takes the whole window" if fits is None else f"{fits}, which fits, or auto"
        with pytest.raises(LossCheckFailed, match=rf"^tail-tokens 2: loss within 20\.0%.*: set tail-tokens={said}$"):
            _check(known, tail_tokens=2)
        assert _check(Known(_Weights()), tail_tokens=2).tail_tokens == 2

    def test_a_cached_prefix_that_is_not_frozen_is_found(self) -> None:
        """Its loss is right, until the weights move."""
        known = Known(_Weights(), turns=dict.fromkeys((32, 64, 128, 256, None), 1.0))

        with pytest.raises(LossCheckFailed, match="where nothing is merged"):
            _check(known)

    def test_a_model_without_a_window_has_no_tail_to_compare(self) -> None:
        known = Known(_Weights(), tails=(), noise={"bfloat16": 1e-5})

        choice = _check(known, fast="bfloat16")

        assert (choice.tail_tokens, choice.precision) == (None, "bfloat16")
        assert set(known.passes) == {REFERENCE, Setting(None, "bfloat16")}


class TestEpsilon:
    def test_it_is_lowered_where_the_loss_is_curved(self) -> None:
        # ½·c·ε²·300 is 0.1 of the loss at ε = 2**-12
        choice = _check(Known(_Weights(), curvature=0.2 / (300 * 2.0**-24), slope=30.0))

        assert 2.0**-14 <= choice.epsilon <= 2.0**-12

    def test_it_is_raised_where_differences_drown(self) -> None:
        choice = _check(Known(_Weights(), noise={"float32": 0.008}))

        # a difference is about ε·√300, the noise of one 0.006
        assert 2.0**-10 < choice.epsilon <= 2.0**-5

    @pytest.mark.parametrize("epsilon", [1e-7, 1e-5])
    def test_a_fixed_one_that_is_too_small_names_one_that_fits(self, epsilon: float) -> None:
        known = Known(_Weights(), noise={"float32": 1e-3})

        with pytest.raises(LossCheckFailed, match=r"differences drown|times above rounding noise") as refused:
            _check(known, epsilon=epsilon)

        word = str(refused.value)
        assert word.startswith(f"epsilon is {epsilon:g}, with which")
        named = float(word.split("set epsilon=")[1].split(",")[0])
        assert _check(Known(_Weights(), noise={"float32": 1e-3}), epsilon=named).epsilon == named

    def test_a_fixed_one_that_is_too_large_names_one_that_fits(self) -> None:
        with pytest.raises(LossCheckFailed, match=r"curvature is \d+\.\d% of the loss.*: set epsilon=") as refused:
            _check(Known(_Weights(), curvature=100.0), epsilon=0.05)

        named = float(str(refused.value).split("set epsilon=")[1].split(",")[0])
        assert _check(Known(_Weights(), curvature=100.0), epsilon=named).epsilon == named

    def test_what_is_fixed_and_fits_stays(self) -> None:
        assert _check(Known(_Weights()), epsilon=1e-3).epsilon == 1e-3

    def test_noise_alone_stops_nobody_who_left_the_choice(self) -> None:
        choice = _check(Known(_Weights(), slope=0.0, noise={"float32": 1e-6}))

        assert choice.tail_tokens == 32
        assert "drown" in choice.sentence or "times above" in choice.sentence


class TestPrecision:
    def test_the_shorter_type_is_taken_where_it_adds_little(self) -> None:
        choice = _check(Known(_Weights(), noise={"bfloat16": 5e-4}), fast="bfloat16")

        assert (choice.precision, choice.epsilon) == ("bfloat16", 16 * FIRST_EPSILON)  # its curvature is small

    def test_epsilon_is_raised_for_it_where_the_loss_is_flat(self) -> None:
        choice = _check(Known(_Weights(), noise={"bfloat16": 5e-3}), fast="bfloat16")

        assert choice.precision == "bfloat16"
        assert 2 * FIRST_EPSILON <= choice.epsilon <= 16 * FIRST_EPSILON

    def test_it_is_refused_where_it_drowns_at_every_epsilon(self) -> None:
        choice = _check(Known(_Weights(), noise={"bfloat16": 5e-3}, curvature=400.0), fast="bfloat16")

        assert choice.precision == "float32"
        assert "float32 (not bfloat16: loss within" in choice.sentence

    def test_a_fixed_one_that_drowns_is_refused(self) -> None:
        known = Known(_Weights(), noise={"bfloat16": 5e-3})

        with pytest.raises(LossCheckFailed, match=r"^precision is 'bfloat16', .*: set precision=float32, which fits"):
            _check(known, precision="bfloat16", epsilon=1e-3)

    @pytest.mark.parametrize("short", [5e-4, 5.0])
    def test_held_weights_are_taken_where_they_add_little(self, short: float) -> None:
        """With the shorter type for the rest where that fits, else with float32."""
        known = Known(_Weights(), noise={"bfloat16": short, "held": 5e-4})

        choice = _check(known, fast="bfloat16", frozen="int8")

        assert (choice.frozen, choice.precision) == ("int8", "bfloat16" if short < 1 else "float32")
        assert f"frozen weights in int8, the rest in {choice.precision}: loss within" in choice.sentence

    def test_held_weights_are_refused_where_losses_drown(self) -> None:
        known = Known(_Weights(), noise={"held": 5e-2}, curvature=400.0)

        assert _check(known, frozen="int8").frozen == "float32"
        with pytest.raises(
            LossCheckFailed, match=r"^frozen-precision is 'int8', .*: set frozen-precision=float32, which"
        ):
            _check(known, frozen="int8", frozen_fixed=True)

    @pytest.mark.parametrize("turn", [0.0, 0.2])
    def test_held_weights_may_be_of_a_slightly_different_model(self, turn: float) -> None:
        """Differences are off by more than a shorter type's may be; their cosine is 1 ÷ √(1 + turn²)."""
        choice = _check(Known(_Weights(), held=turn), frozen="int8", frozen_fixed=True)

        assert choice.frozen == "int8"
        assert "cosine of the differences 1.000" in choice.sentence or turn

    @pytest.mark.parametrize("turn", [1.0, -10.0])
    def test_held_weights_that_lead_elsewhere_are_refused(self, turn: float) -> None:
        known = Known(_Weights(), held=turn)

        assert _check(known, frozen="int8").frozen == "float32"
        with pytest.raises(LossCheckFailed, match=r"cosine of the differences 0.* and a cosine of 0\.90 or more: set"):
            _check(known, frozen="int8", frozen_fixed=True)

    def test_all_that_does_not_fit_is_named_at_once(self) -> None:
        known = Known(_Weights(), noise={"bfloat16": 5e-2}, offsets={2: (1.0,) * 4}, curvature=500.0)

        with pytest.raises(LossCheckFailed) as refused:
            _check(known, precision="bfloat16", epsilon=0.06, tail_tokens=2)

        assert [part.split(" is ")[0].split(" 2")[0] for part in str(refused.value).split("; ")] == [
            "tail-tokens",
            "epsilon",
            "precision",
        ]


@pytest.mark.parametrize(("fast", "others"), [("float32", 5), ("bfloat16", 10)])
def test_where_all_is_clear_one_direction_is_enough(fast: str, others: int) -> None:
    """The weights and two sides of a direction: of the window, of the tail at two εs, of a shorter type."""
    known = Known(_Weights(), noise={"bfloat16": 1e-6})

    _check(known, fast=fast)

    assert known.passes[REFERENCE] == 3
    assert known.passes.total() == 3 + others


def test_a_loss_that_is_wrong_is_refused_at_the_weights() -> None:
    known = Known(_Weights(), offsets=dict.fromkeys((64, 128), (0.2,) * UTTERANCES), turns={32: 0.3})

    assert _check(known).tail_tokens == 256
    assert [known.passes[Setting(tail, "float32")] for tail in (64, 128)] == [1, 1]


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(st.sampled_from([32, 64, 128, 256]), st.floats(-1, 1)),
    st.floats(0, 0.1),
    st.floats(0, 0.1),
    st.floats(0, 1e6),
    st.floats(0, 100),
)
def test_it_never_costs_more_than_its_passes(
    wrong: dict[int, float], noise: float, short: float, curvature: float, slope: float
) -> None:
    known = Known(
        _Weights(),
        offsets={tail: (off,) * UTTERANCES for tail, off in wrong.items()},
        noise={"float32": noise, "bfloat16": short},
        curvature=curvature,
        slope=slope,
    )

    try:
        choice = _check(known, fast="bfloat16")
    except LossCheckFailed as error:  # the reference itself is but noise
        assert noise > 0 and "where nothing is merged" in str(error)
    else:
        assert choice.epsilon > 0
    assert known.passes.total() <= MOST_PASSES


def test_the_same_losses_give_the_same_choice() -> None:
    assert _check(Known(_Weights(), noise={"bfloat16": 1e-4}), fast="bfloat16") == _check(
        Known(_Weights(), noise={"bfloat16": 1e-4}), fast="bfloat16"
    )


def test_a_reference_that_is_not_finite_is_an_error_and_the_weights_are_back() -> None:
    known = Known(_Weights(), noise={"float32": float("nan")})

    with pytest.raises(NonFiniteLoss):
        _check(known)


@pytest.mark.parametrize(("forwards", "utterances"), [(0, 2), (8, 2), (100, 3), (128, 4), (10**6, 6)])
def test_a_check_costs_no_more_than_a_round(forwards: int, utterances: int) -> None:
    assert utterances_for(forwards) == utterances
