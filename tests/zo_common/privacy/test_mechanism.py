"""Settings that promise nothing are refused, and what is released is clipped, noised and divided as promised."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from zo_common.config.run import RunConfig
from zo_common.errors import CodecError, ConfigError
from zo_common.estimator.local_steps import run_local_steps
from zo_common.estimator.settings import EstimatorConfig
from zo_common.estimator.step import zo_step
from zo_common.lattice.state import LatticeState
from zo_common.privacy.mechanism import Mechanism, PrivacySettings, noised_mean, share_of_noise
from zo_common.wire.plan import Plan, decode_plan, encode_plan

RARE = 1e-6
SETTINGS = PrivacySettings("example", 8.0, 1e-6, 100.0)
EXAMPLE = Mechanism("example", 10.0, 1.5, 20)


class TestSettings:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"clip_norm": 0.0}, "clip-norm is 0.0"),
            ({"clip_norm": math.inf}, "clip-norm is inf"),
            ({"noise_multiplier": -1.0}, "noise-multiplier is -1.0"),
            ({"noise_multiplier": math.nan}, "noise-multiplier is nan"),
            ({"target_epsilon": 0.0}, "target-epsilon is 0.0"),
            ({"target_epsilon": math.inf}, "target-epsilon is inf"),
            ({"target_delta": 0.0}, "target-delta is 0.0"),
            ({"target_delta": 1.0}, "target-delta is 1.0"),
            ({"level": "none"}, "privacy is 'none'"),
            ({"noise_by": "nobody"}, "noise-by is 'nobody'"),
        ],
    )
    def test_what_gives_no_guarantee_is_refused(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message) as error:
            replace(SETTINGS, **changes)
        assert "\n" not in str(error.value)

    def test_delta_must_be_less_than_one_in_all(self) -> None:
        replace(SETTINGS, target_delta=0.00999).check_population(100)
        with pytest.raises(ConfigError, match="with 100 utterances, expected less than 1/100"):
            replace(SETTINGS, target_delta=0.01).check_population(100)
        with pytest.raises(ConfigError, match="with 3 devices"):
            replace(SETTINGS, level="device", target_delta=0.5).check_population(3)


class TestRunConfig:
    def test_without_privacy_there_is_nothing_to_settle(self) -> None:
        assert RunConfig().privacy_settings is None

    def test_the_settings_of_a_run(self) -> None:
        config = RunConfig.from_mapping(
            {"privacy": "device", "target-epsilon": 2, "clip-norm": 5, "directions": "shared", "weighting": "uniform"}
        )

        assert config.privacy_settings == PrivacySettings("device", 2.0, 1e-6, 5.0)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"privacy": "some"}, "privacy is 'some', expected one of none, example, device"),
            ({"privacy": "example", "clip_norm": 0.0}, "clip-norm is 0.0"),
            ({"privacy": "example", "evaluate_on": "clients"}, "evaluate-on=clients"),
            ({"privacy": "device"}, "set directions=shared"),
            ({"privacy": "device", "directions": "shared"}, "set weighting=uniform"),
        ],
    )
    def test_a_run_that_would_break_its_promise_is_refused(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            RunConfig(**changes)


class TestReleases:
    def test_the_divisor_is_the_expected_batch(self) -> None:
        """One more utterance adds its own part, and leaves the others' where it was."""
        quiet = replace(EXAMPLE, noise_multiplier=1e-6)  # a few units
        one = np.full((4, 1), 1.0)

        alone = quiet.release_step(one, 8)
        twice = quiet.release_step(np.repeat(one, 2, axis=1), 8)
        none = quiet.release_step(np.zeros((4, 0)), 8)

        assert alone.dtype == np.float32
        assert np.allclose(alone, 1 / 8, atol=1e-4)
        assert np.allclose(twice, 2 / 8, atol=1e-4)
        assert np.allclose(none, 0, atol=1e-4)

    def test_the_noise_of_a_step(self) -> None:
        noise = EXAMPLE.release_step(np.zeros((2_000, 0)), 8).astype(np.float64)

        assert stats.kstest(noise / (1.5 * 10.0 / 8), "norm").pvalue > RARE

    def test_an_utterance_is_clipped_as_one_vector(self) -> None:
        quiet = replace(EXAMPLE, noise_multiplier=1e-6)
        vectors = np.array([[30.0, 3.0], [40.0, 4.0]])  # norms 50 and 5, clip norm 10

        assert np.allclose(quiet.release_step(vectors, 1), [6 + 3, 8 + 4], atol=1e-3)

    def test_a_reply_is_clipped_as_one_vector(self) -> None:
        quiet = Mechanism("device", 10.0, 1e-6, 1)

        found = quiet.release_reply(np.full((2, 8), 25.0, np.float32))

        assert found.shape == (2, 8)
        assert np.allclose(found, 2.5, atol=1e-3)

    def test_a_reply_that_is_not_finite_is_noise_alone(self) -> None:
        grads = np.full((1, 1_000), 7.0, np.float32)
        grads[0, 3] = np.nan

        noise = Mechanism("device", 10.0, 2.0, 1).release_reply(grads)[0].astype(np.float64)

        assert stats.kstest(noise / 20.0, "norm").pvalue > RARE

    def test_shares_add_up_to_the_noise_of_the_sum(self) -> None:
        share = Mechanism("device", 10.0, share_of_noise(2.0, 16), 1)

        total = np.sum([share.release_reply(np.zeros((1, 1_000), np.float32))[0] for _ in range(16)], axis=0)

        assert stats.kstest(total / 20.0, "norm").pvalue > RARE

    def test_the_mean_with_the_servers_noise(self) -> None:
        replies = [np.full((1, 1_000), value, np.float32) for value in (0.1, 0.3)]

        mean = noised_mean(replies, 20.0, 2.0)

        assert mean.dtype == np.float32
        assert stats.kstest((mean[0].astype(np.float64) - 0.2) / 20.0, "norm").pvalue > RARE
        with pytest.raises(ConfigError, match="without noise"):
            noised_mean(replies, 20.0, 0.0)

    def test_nobody_replays_a_release(self) -> None:
        seen = []
        for _ in range(2):
            torch.manual_seed(0)
            np.random.seed(0)
            seen.append(EXAMPLE.release_step(np.ones((8, 3)), 8).tobytes())

        assert seen[0] != seen[1]

    @pytest.mark.parametrize(
        "fields",
        [
            ("none", 1.0, 1.0, 1),
            ("example", 0.0, 1.0, 1),
            ("example", 1.0, 0.0, 1),
            ("example", 1.0, 1.0, 0),
            ("example", 1.0, 1.0, 1, True),
            ("device", 1.0, 0.0, 1, True),
        ],
    )
    def test_a_mechanism_that_gives_nothing(self, fields: tuple[Any, ...]) -> None:
        with pytest.raises(ConfigError):
            Mechanism(*fields)


class TestSteps:
    def test_what_is_released_is_what_is_applied_and_undone(
        self, small_model: Callable[..., nn.Module], weight_bytes: Callable[[nn.Module], dict[str, bytes]]
    ) -> None:
        """The next step starts where whoever replays the released scalars stands."""
        state = LatticeState(small_model(), "all", "unit", kernel="torch")
        before = weight_bytes(state.model)
        config = EstimatorConfig("leave-one-out", 4, 1e-2)
        released: list[np.ndarray[Any, Any]] = []

        def release(per_example: Any) -> Any:
            released.append(EXAMPLE.release_step(per_example, 3))
            return released[-1]

        losses = [torch.rand(5, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)]  # a sample may be empty

        result = run_local_steps(state, lambda k: lambda: losses[k], 7, 2, config, 0.01, release=release)

        assert result.projected_grads.tobytes() == np.stack(released).tobytes()
        assert weight_bytes(state.model) == before
        assert (released[1] != 0).all()

    def test_an_empty_sample_without_a_release_moves_nothing(self, small_model: Callable[..., nn.Module]) -> None:
        state = LatticeState(small_model(), "all", "unit", kernel="torch")
        before = state.checksum()

        result = zo_step(state, lambda: torch.zeros(0), 1, 0, EstimatorConfig("two-sided", 2, 1e-2), 0.1)

        assert (result.examples, result.loss, result.per_example.shape) == (0, 0.0, (2, 0))
        assert state.checksum() == before


class TestPlans:
    @settings(deadline=None)
    @given(
        st.sampled_from(["example", "device"]),
        st.floats(1e-20, 1e20),
        st.floats(1e-6, 1e6),
        st.integers(1, 2**32 - 1),
        st.booleans(),
    )
    def test_a_plan_carries_what_it_asks(
        self, level: Any, clip: float, noise: float, examples: int, masked: bool
    ) -> None:
        mechanism = Mechanism(level, clip, noise, examples, masked and level == "device")
        plan = Plan(3, 1, 2, 3, 4, 2, 16, 0.5, EstimatorConfig(), (), mechanism)

        assert decode_plan(encode_plan(plan)).privacy == plan.privacy

    def test_a_plan_without_privacy_has_no_bytes_for_it(self) -> None:
        plan = Plan(3, 1, 2, 3, 4, 2, 16, 0.5, EstimatorConfig())

        assert len(encode_plan(plan)) == 59
        assert len(encode_plan(replace(plan, privacy=EXAMPLE))) == 59 + 21

    def test_damaged_privacy_is_refused(self) -> None:
        data = encode_plan(Plan(3, 1, 2, 3, 4, 2, 16, 0.5, EstimatorConfig(), (), EXAMPLE))

        for cut in range(1, 21):
            with pytest.raises(CodecError):
                decode_plan(data[:-cut])
        with pytest.raises(CodecError, match="unknown level"):
            decode_plan(data[:59] + b"\x03" + data[60:])
        with pytest.raises(CodecError, match="clip-norm"):
            decode_plan(data[:60] + bytes(8) + data[68:])
        with pytest.raises(CodecError, match="noise-multiplier"):
            decode_plan(data[:68] + bytes(8) + data[76:])
