"""`zo-asr-privacy` says what a guarantee costs, checks what a run has spent, and refuses in one sentence."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from server.commands import privacy as privacy_cli
from zo_common.errors import ConfigError
from zo_common.ledger.file import LEDGER_NAME, LedgerFile
from zo_common.ledger.ledger import LedgerHeader, TensorEntry
from zo_common.ledger.record import Contribution, Record
from zo_common.privacy.accountant import Release, epsilon_spent, noise_for
from zo_common.privacy.charges import LOG_NAME, Charge, PrivacyLog
from zo_common.privacy.plan import PrivacyPlan

Cli = Callable[..., tuple[int, str, str]]
PLAN = PrivacyPlan("example", 8.0, 1e-6, rounds=12, examples=58, devices=8)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs the command line; its status, output and errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["zo-asr-privacy", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            privacy_cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


class TestPlan:
    def test_the_noise_is_the_accountants(self) -> None:
        cost = PLAN.result()

        assert cost.noise_multiplier == noise_for(8.0, 1e-6, 12, 16, 58)
        assert cost.rate == 16 / 58
        assert list(cost.epsilon_after) == [1, 2, 4, 5, 6, 7, 8, 10, 11, 12]
        assert sorted(cost.epsilon_after.values()) == list(cost.epsilon_after.values())
        assert 7.9 < cost.epsilon_after[12] <= 8.0

    def test_the_damage(self) -> None:
        cost = replace(PLAN, gradient_square=20.0, gradient_variance=160.0).result()

        assert cost.usual_norm == cost.clip_norm == pytest.approx(math.sqrt(8 * 180))
        assert cost.scalar_std == pytest.approx(math.sqrt(20 + 160 / 16))
        assert cost.noise_std == pytest.approx(cost.noise_multiplier * cost.clip_norm / 16)
        assert cost.slow_down == pytest.approx(1 + (cost.noise_std / cost.scalar_std) ** 2)
        assert cost.learning_rate_factor == pytest.approx(1 / cost.slow_down)

    def test_a_smaller_clip_norm_is_made_up_for_by_the_learning_rate(self) -> None:
        usual = PLAN.result()
        half, double = (replace(PLAN, clip_norm=f * usual.clip_norm).result() for f in (0.5, 2.0))

        assert half.slow_down == pytest.approx(usual.slow_down)
        assert half.learning_rate_factor == pytest.approx(2 * usual.learning_rate_factor)
        assert double.slow_down - 1 == pytest.approx(4 * (usual.slow_down - 1))

    def test_more_devices_hide_one_of_them_better(self) -> None:
        few = replace(PLAN, level="device", delta=1e-3)
        many = replace(few, devices=64)

        assert few.result().noise_multiplier == many.result().noise_multiplier == noise_for(8.0, 1e-3, 12)
        assert many.result().noise_to_scalar < few.result().noise_to_scalar

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"delta": 1e-2}, "with 464 utterances"),
            ({"level": "device", "delta": 0.2}, "with 8 devices"),
            ({"level": "all"}, "privacy is 'all'"),
            ({"epsilon": 0.0}, "target-epsilon is 0.0"),
            ({"clip_norm": -1.0}, "clip-norm is -1.0"),
            ({"rounds": 0}, "rounds is 0"),
            ({"gradient_variance": 0.0}, "gradient-variance is 0.0"),
        ],
    )
    def test_wrong_parameters(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            replace(PLAN, **changes)


def test_plan_prints_the_noise_and_the_damage(cli: Cli) -> None:
    status, out, _ = cli("plan", "--rounds", 12, "--examples", 58)

    assert status == 0
    for part in ("noise multiplier", "noise std per scalar", "steps for the same progress", "after round", "1.0981"):
        assert part in out


def test_the_tutorial_shows_what_plan_prints(cli: Cli) -> None:
    page = (Path(__file__).parents[3] / "docs" / "tutorials" / "private-run.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^    zo-asr privacy (plan .*)$", page, re.MULTILINE)
    shown = page.split("price:\n\n")[1].split("\n\n")[0]

    _, out, _ = cli(*command.split())

    assert [line.strip() for line in shown.splitlines()] == [
        line.strip() for line in out.splitlines()[: len(shown.splitlines())]
    ]


def test_plan_as_json(cli: Cli) -> None:
    _, out, _ = cli("plan", "--rounds", 12, "--examples", 58, "--json")

    found = json.loads(out)
    assert found["plan"]["rounds"] == 12
    assert found["cost"]["noise_multiplier"] == PLAN.result().noise_multiplier


def test_a_wrong_parameter_is_one_sentence(cli: Cli) -> None:
    status, out, err = cli("plan", "--rounds", 12, "--delta", 0.1)

    assert (status, out) == (1, "")
    assert err.startswith("error: target-delta is 0.1 with 800 utterances")
    assert err.count("\n") == 1


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The directory of a run of two rounds, the second of which was asked for twice."""
    settings = {"privacy": "example", "target-epsilon": 8.0, "target-delta": 1e-3, "directions": "independent"}
    settings |= {"noise-multiplier": 3.0, "local-steps": 1, "batch-size": 2}
    tensors = (TensorEntry("w", (4,), -24, 0),)
    header = LedgerHeader("ab" * 32, 1, "m", "all", "unit", 1e-3, "two-sided", 0, "now", tensors, settings)
    ledger = LedgerFile.create(tmp_path / LEDGER_NAME, header)
    log = PrivacyLog.create(tmp_path / LOG_NAME)
    for times, number in enumerate((1, 2, 2), 1):
        epsilon = epsilon_spent({Release(3.0, 2, 9): times}, 1e-3)
        log.append(Charge(number, ledger.chains[number - 1].hex(), "example", 3.0, 1, 2, {9: [5]}, epsilon, 1e-3))
        if times != 2:
            ledger.append(Record(number, 7, (Contribution(1, 5, np.ones((1, 2), np.float32)),)))
    return tmp_path


class TestVerify:
    def test_what_was_spent(self, cli: Cli, run: Path) -> None:
        status, out, _ = cli("verify", run)
        _, as_json, _ = cli("verify", run, "--json")

        spent = epsilon_spent({Release(3.0, 2, 9): 3}, 1e-3)
        assert status == 0
        assert f"ε {spent:.3f} of 8 spent" in out
        assert "3 charges for 2 rounds (1 asked again after a stop)" in out
        assert json.loads(as_json)["epsilon"] == spent

    def test_an_altered_line(self, cli: Cli, run: Path) -> None:
        path = run / LOG_NAME
        path.write_text(path.read_text().replace('"noise_multiplier":3.0', '"noise_multiplier":4.0', 1))

        status, _, err = cli("verify", run)

        assert status == 1
        assert "line 1 does not match its hash chain" in err

    def test_a_missing_log(self, cli: Cli, run: Path) -> None:
        (run / LOG_NAME).unlink()

        status, _, err = cli("verify", run)

        assert (status, err.count("\n")) == (1, 1)
        assert "the privacy that the run has spent is unknown" in err


def test_along_shared_directions_the_devices_noise_and_chance_are_averaged() -> None:
    alone, shared = PLAN.result(), replace(PLAN, directions="shared").result()

    assert shared.noise_multiplier == alone.noise_multiplier
    assert shared.noise_std == pytest.approx(alone.noise_std / math.sqrt(8))
    variance = PLAN.gradient_variance / (PLAN.expected_batch * 8)
    assert shared.scalar_std == pytest.approx(math.sqrt(PLAN.gradient_square + variance))
    assert shared.slow_down < alone.slow_down
    with pytest.raises(ConfigError, match="directions is 'own', expected one of independent, shared"):
        replace(PLAN, directions=cast(Any, "own"))
