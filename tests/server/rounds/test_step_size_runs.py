"""The measured step in whole federations: resumed, attacked, private."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_grid import FakeGrid
from killed import Killed
from step_replies import MEASURED, Replies, numbers_of

from server.rounds.federation import Federation
from server.rounds.private_step import ServerMeasuredStep
from server.rounds.step_size import LOG_NAME
from zo_common.config.run import RunConfig
from zo_common.errors import ConfigError
from zo_common.estimator.curvature import Curvature, RelativeCurvature
from zo_common.ledger.record import Record
from zo_common.wire.plan import decode_reply, encode_reply

Settings = Callable[..., RunConfig]
Federate = Callable[..., Federation]


def _rows(config: RunConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(config.output) / LOG_NAME).read_text().splitlines()]


class TestFederation:
    def test_a_run_measures_its_steps(
        self, settings: Settings, federate: Federate, observed: Any, ledger_of: Any
    ) -> None:
        config = settings(**MEASURED)

        federate(config)

        rows = _rows(config)
        assert [row["server_round"] for row in rows] == [1, 2, 3, 4]
        assert [row["learning_rate"] for row in rows] == [report.learning_rate for report in observed.reports]
        assert all(row["devices"] == 3 and 0 <= row["noise_share"] <= 3 for row in rows)
        assert ledger_of(config).header.settings["learning-rate"] == "auto"
        assert all(c.coefficients.any() for record in ledger_of(config).records for c in record.contributions)

    def test_a_ctc_model_measures_its_steps(self, ctc_settings: Settings, federate: Federate, observed: Any) -> None:
        config = ctc_settings(**MEASURED | {"num_server_rounds": 2})

        federate(config)

        assert [report.answered for report in observed.reports] == [3, 3]
        assert all(row["per_direction"] > 0 for row in _rows(config))

    def test_a_resumed_run_ends_with_the_same_bits(
        self,
        settings: Settings,
        federate: Federate,
        grid_of: Callable[..., FakeGrid],
        ledger_of: Any,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        changes = MEASURED | {"local_steps": 2, "num_queries": 3}
        whole = settings(**changes, output=str(tmp_path / "whole"))
        federate(whole)

        killed = settings(**changes)
        grid = grid_of(killed)
        federation = Federation(killed, grid)
        commit = federation.state.commit

        def dies(server_round: int, contributions: Any) -> None:
            if server_round == 3:  # the step's line is written, the round is not
                raise Killed
            commit(server_round, contributions)

        monkeypatch.setattr(federation.state, "commit", dies)
        with pytest.raises(Killed):
            federation.run()
        assert [row["server_round"] for row in _rows(killed)] == [1, 2, 3]
        federate(replace(killed, resume=True))

        def bits(config: RunConfig) -> list[Record]:
            return list(ledger_of(config).records)

        assert bits(killed) == bits(whole)
        assert _rows(killed) == _rows(whole)

    @pytest.mark.parametrize(
        "lie",
        [
            {"per_direction": 1e-30, "along_signal": -1e30},
            {"per_direction": 1e30},
            {"along_signal": 1e38, "noise": 1e38},
        ],
    )
    def test_a_device_that_reports_wild_curvature_moves_no_step_beyond_two(
        self,
        settings: Settings,
        federate: Federate,
        grid_of: Callable[..., FakeGrid],
        tmp_path: Path,
        lie: dict[str, float],
    ) -> None:
        config = settings(**MEASURED | {"num_queries": 8, "batch_size": 3})
        federate(config)
        attacked = replace(config, output=str(tmp_path / "attacked"))
        grid = grid_of(attacked)

        def wild(server_round: int, payload: bytes) -> bytes:
            reply = decode_reply(payload)
            if reply.curvature is None:
                return payload
            return encode_reply(replace(reply, curvature=replace(reply.curvature, **lie)))

        grid[1].after = wild
        federate(attacked, grid)

        assert [row["devices"] for row in _rows(attacked)] == [3] * 4
        first = _rows(config)[0]["learning_rate"], _rows(attacked)[0]["learning_rate"]
        assert 0.5 <= first[1] / first[0] <= 2

    @pytest.mark.parametrize("field", ["per_direction", "along_signal", "noise"])
    def test_a_curvature_that_is_no_number_is_refused(
        self, settings: Settings, federate: Federate, grid_of: Callable[..., FakeGrid], observed: Any, field: str
    ) -> None:
        config = settings(**MEASURED | {"num_server_rounds": 1})
        grid = grid_of(config)

        def broken(server_round: int, payload: bytes) -> bytes:
            reply = decode_reply(payload)
            if reply.curvature is None:
                return payload
            return encode_reply(replace(reply, curvature=replace(reply.curvature, **{field: math.nan})))

        grid[0].after = broken
        federate(config, grid)

        assert observed.reports[0].refused == {"bad-curvature": 1}
        assert _rows(config)[0]["devices"] == 2

    def test_devices_without_a_curvature_and_with_one_unasked_are_refused(
        self, settings: Settings, federate: Federate, grid_of: Callable[..., FakeGrid], observed: Any
    ) -> None:
        def change(curvature: Curvature | None) -> Callable[[int, bytes], bytes]:
            def after(server_round: int, payload: bytes) -> bytes:
                reply = decode_reply(payload)
                return encode_reply(replace(reply, curvature=curvature)) if reply.projected_grads.size else payload

            return after

        asked = settings(**MEASURED | {"num_server_rounds": 1})
        grid = grid_of(asked)
        grid[2].after = change(None)
        federate(asked, grid)
        unasked = settings(num_server_rounds=1, output=asked.output + "-fixed")
        grid = grid_of(unasked)
        grid[2].after = change(Curvature(1.0, 1.0, 1.0, 1.0))
        federate(unasked, grid)

        assert [report.refused for report in observed.reports] == [{"bad-curvature": 1}] * 2


class TestPrivacy:
    PRIVATE = MEASURED | {"privacy": "example", "target_delta": 1e-3, "clip_norm": 5.0, "num_server_rounds": 2}

    def test_the_server_measures_on_its_own_speech(
        self, settings: Settings, federate: Federate, grid_of: Callable[..., FakeGrid], observed: Any
    ) -> None:
        config = settings(**self.PRIVATE, guard_split="test", target_epsilon=1.0)
        grid, seen = grid_of(config), []

        def note(server_round: int, payload: bytes) -> bytes:
            seen.append(decode_reply(payload).curvature)
            return payload

        for partition in range(3):
            grid[partition].after = note
        federation = federate(config, grid)

        assert isinstance(federation.step_size, ServerMeasuredStep)
        assert seen
        assert set(seen) == {None}
        rows = _rows(config)
        assert [row["server_round"] for row in rows] == [1, 2]
        # noise of this size leaves little signal, which no floor may hide
        assert all(0.95 < row["noise_share"] < 1 for row in rows)
        assert federation.global_model is not None
        assert federation.checksum == federation.global_model.state.checksum()

    @pytest.mark.parametrize("changes", [{}, {"guard_split": "test", "server_model": False}])
    def test_without_speech_or_model_the_run_does_not_begin(
        self, settings: Settings, federate: Federate, changes: dict[str, Any]
    ) -> None:
        config = settings(**self.PRIVATE | {"guard_split": ""} | changes)

        with pytest.raises(ConfigError, match="guard"):
            federate(config)

        assert not (Path(config.output) / "ledger.zo").exists()

    def test_more_noise_and_a_smaller_clip_norm_are_accounted_for(self, settings: Settings, federate: Federate) -> None:
        device = {"privacy": "device", "directions": "shared", "weighting": "uniform", "noise_by": "server"}
        common = self.PRIVATE | device | {"guard_split": "test", "num_server_rounds": 1, "target_epsilon": 1e15}
        few = {"trained_tensors": "encoder-residual-bias"}  # along these a random model's curvature is hardly noise
        config = settings(**common | few | {"clip_norm": 1e6, "noise_multiplier": 1e-6})
        held = federate(config).global_model

        def rate(**changes: Any) -> tuple[float, RelativeCurvature]:
            changed = replace(config, **changes)
            step = ServerMeasuredStep(changed, held)
            (found,) = step.measure(1, Replies([numbers_of()] * 3))
            return step._rate(found, 3, config.local_steps), found

        plain, numbers = rate()
        noisy, more = rate(noise_multiplier=1e-3)
        shorter, _ = rate(clip_norm=1e-6, noise_multiplier=1e-6)

        assert noisy < plain
        assert more.per_direction == numbers.per_direction
        assert (1 - more.noise_share) / (1 - numbers.noise_share) == pytest.approx(
            more.along_signal / numbers.along_signal
        )
        assert shorter > 100 * plain  # its scalars are that much smaller, and so is what they are multiplied with

    def test_devices_of_one_utterance_are_measured_on_more(self, settings: Settings, federate: Federate) -> None:
        """One utterance cannot tell its noise: what is measured on several is scaled to the devices' batch."""
        device = {"privacy": "device", "directions": "shared", "weighting": "uniform", "noise_by": "server"}
        common = {"guard_split": "test", "num_server_rounds": 1, "target_epsilon": 1e15, "clip_norm": 1e3}
        config = settings(**self.PRIVATE | device | common | {"noise_multiplier": 1e-6, "batch_size": 1})
        held = federate(config).global_model

        def measured(batch: int) -> tuple[RelativeCurvature, float]:
            step = ServerMeasuredStep(replace(config, batch_size=batch), held)
            (found,) = step.measure(1, Replies([numbers_of()] * 3))
            return found, step.pool([found]).share_error

        (one, error), (two, smaller) = measured(1), measured(2)

        assert one.noise_share * one.square == pytest.approx(2 * two.noise_share * two.square, rel=1e-2)
        signals = [(1 - found.noise_share) * found.square for found in (one, two)]
        assert signals[0] == pytest.approx(signals[1], abs=1e-2 * one.square)
        assert 0 < error < smaller  # of m, which the noise of one utterance makes larger

    def test_what_is_sent_has_the_mean_square_that_the_loss_falls_with(
        self, settings: Settings, federate: Federate
    ) -> None:
        """For replies shortened to a part f, scalars f g + noise move the loss as g with m / f would."""
        device = {"privacy": "device", "directions": "shared", "weighting": "uniform", "noise_by": "server"}
        common = {"guard_split": "test", "num_server_rounds": 1, "target_epsilon": 1e15}
        config = settings(**self.PRIVATE | device | common | {"clip_norm": 1e3, "noise_multiplier": 1e-6})
        held = federate(config).global_model
        (plain,) = ServerMeasuredStep(config, held).measure(1, Replies([numbers_of()] * 3))
        scalars = config.num_queries * config.local_steps
        part, clip_norm = 0.25, 0.25 * math.sqrt(plain.square * scalars)

        step = ServerMeasuredStep(replace(config, clip_norm=clip_norm, noise_multiplier=0.5), held)
        (found,) = step.measure(1, Replies([numbers_of()] * 3))

        sent = part**2 * plain.square + (0.5 * clip_norm) ** 2 / 3
        assert found.square * part == pytest.approx(sent, rel=1e-3)
        assert step.pool([found]).kept == pytest.approx(part**2 * plain.square / sent, rel=1e-3)
        # the loss falls by α Q f s, of α Q x m / f in these numbers
        assert (1 - found.noise_share) * found.square == pytest.approx(
            part * (1 - plain.noise_share) * plain.square, rel=1e-2
        )
        assert step.explored_signal(step.pool([found])) == pytest.approx(0.05 * step.pool([found]).kept)

    def test_a_clip_norm_far_above_the_usual_one_is_reported_once(
        self, settings: Settings, federate: Federate, caplog: pytest.LogCaptureFixture
    ) -> None:
        config = settings(**self.PRIVATE | {"guard_split": "test", "num_server_rounds": 1})
        held = federate(config).global_model
        caplog.clear()

        step = ServerMeasuredStep(config, held)
        step.measure(1, Replies([numbers_of()] * 3))
        step.measure(2, Replies([numbers_of()] * 3))

        (warning,) = [record.getMessage() for record in caplog.records if "clip-norm" in record.getMessage()]
        found = re.fullmatch(
            r"clip-norm is 5, (\d+\.\d) times the usual norm on the server's speech, and so is the noise: "
            r"([0-9.e-]+) would do in another run",
            warning,
        )
        assert found is not None
        times, usual = map(float, found.groups())
        assert times * usual == pytest.approx(5, rel=0.1)
        caplog.clear()
        ServerMeasuredStep(replace(config, clip_norm=usual), held).measure(1, Replies([numbers_of()] * 3))
        assert "clip-norm" not in caplog.text

    def test_checks_tell_the_signal(self, settings: Settings, federate: Federate) -> None:
        # the noise is the operating system's: three bad rounds in a row are possible, and would end the run
        guard = {"guard_split": "test", "guard_every": 1, "max_bad_rounds": 9}
        config = settings(**self.PRIVATE | guard | {"num_server_rounds": 4})

        federation = federate(config)

        rows, progress = _rows(config), federation.guard.progress()
        assert all(row["mean_square"] > 0 and row["square"] == 0 and 0 < row["kept"] < 1 for row in rows)
        assert progress is not None and len(progress) == 4
        again = ServerMeasuredStep(federation.config, federation.global_model, lambda: progress)
        unchecked = ServerMeasuredStep(federation.config, federation.global_model)
        for step in (again, unchecked):
            step.take_up(federation.ledger.ledger)
        now = again.pool(again.measure(4, Replies([numbers_of()] * 3)))
        assert again._averaged([now], 3).noise_share != unchecked._averaged([now], 3).noise_share
