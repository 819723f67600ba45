"""Trackers of a run: a user's own, one that fails, and names that lead to none."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_grid import FakeGrid

from server import RunFacts, Tracker
from server.app import run_on
from server.rounds.events import Events
from server.run.log import RoundReport
from server.tracking import choice
from train import train_module
from zo_common.config.run import RunConfig
from zo_common.errors import ConfigError

Settings = Callable[..., RunConfig]
Grids = Callable[..., FakeGrid]


class Recorder(Tracker):
    """Keeps its calls; the last one made is `last`."""

    last: Recorder

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        Recorder.last = self

    def on_run_start(self, run: RunFacts) -> None:
        self.calls.append(("start", run.last_round))

    def on_round(self, server_round: int, scalars: dict[str, float]) -> None:
        self.calls.append(("round", server_round))
        logging.getLogger("server.rounds.federation").warning("round %s is odd", server_round)

    def on_evaluation(self, server_round: int, scalars: dict[str, float]) -> None:
        self.calls.append(("evaluation", server_round))

    def on_warning(self, server_round: int, message: str) -> None:
        if "odd" in message:
            self.calls.append(("warning", message))

    def on_end(self, summary: dict[str, Any]) -> None:
        self.calls.append(("end", summary["status"]))


class Full(Tracker):
    """Fails at the first round."""

    name = "full"
    calls = 0

    def on_round(self, server_round: int, scalars: dict[str, float]) -> None:
        Full.calls += 1
        raise OSError("no space left")


class NeedsKey(Tracker):
    """Cannot be made without an argument."""

    def __init__(self, key: str) -> None: ...


@pytest.fixture
def own_trackers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this file importable as `own_trackers`."""
    monkeypatch.setitem(sys.modules, "own_trackers", sys.modules[__name__])


@pytest.mark.usefixtures("own_trackers")
def test_a_trackers_calls_follow_the_run(settings: Settings, grid_of: Grids) -> None:
    config = settings(round_timeout=200.0, report_to="own_trackers:Recorder", num_server_rounds=2, eval_split="test")

    run_on(grid_of(config), config, Events())

    *calls, end = Recorder.last.calls
    verdict = json.loads((Path(config.output) / "evaluation.json").read_text())["verdict"]
    assert end == ("end", "no better" if verdict else "finished")
    assert calls == [
        ("start", 0),
        ("evaluation", 0),
        ("round", 1),
        ("warning", "round 1 is odd"),
        ("evaluation", 2),
        ("round", 2),
        ("warning", "round 2 is odd"),
        ("evaluation", 2),  # the change from the first to the last
    ]


@pytest.mark.usefixtures("own_trackers")
def test_a_run_that_fails_ends_as_failed(settings: Settings, grid_of: Grids) -> None:
    def fail(report: RoundReport) -> None:
        raise OSError("the disk is gone")

    config = settings(round_timeout=200.0, report_to="own_trackers:Recorder")
    with pytest.raises(OSError, match="the disk is gone"):
        run_on(grid_of(config), config, Events(on_round=fail))

    assert Recorder.last.calls[-1] == ("end", "failed")
    assert not any(type(each).__name__ == "Tracking" for each in logging.getLogger("server").handlers)


@pytest.mark.usefixtures("own_trackers")
def test_a_tracker_that_fails_is_dropped_with_one_warning_and_the_run_goes_on(
    settings: Settings, grid_of: Grids, caplog: pytest.LogCaptureFixture
) -> None:
    config = settings(round_timeout=200.0, report_to="own_trackers:Full,own_trackers:Recorder")
    reports: list[RoundReport] = []
    Full.calls = 0

    run_on(grid_of(config), config, Events(on_round=reports.append))

    assert len(reports) == 3
    assert Full.calls == 1
    assert caplog.text.count("full gets no more of this run: OSError: no space left") == 1
    assert Recorder.last.calls[-1] == ("end", "finished")


@pytest.mark.usefixtures("own_trackers")
@pytest.mark.parametrize(("learning_rate", "status"), [(1e-3, "finished"), (1e-12, "no better")])
def test_training_of_a_module_reports_too(tmp_path: Path, learning_rate: float, status: str) -> None:
    module = torch.nn.Linear(2, 1)
    examples = [(torch.randn(2), torch.randn(1)) for _ in range(4)]

    def losses(batch: list[Any]) -> torch.Tensor:
        x, y = (torch.stack(column) for column in zip(*batch, strict=True))
        return (module(x) - y).square().mean(dim=1)

    train_module(
        module,
        losses,
        examples,
        learning_rate=learning_rate,
        num_server_rounds=2,
        output=str(tmp_path / "run"),
        report_to="own_trackers:Recorder",
    )

    assert [call for call in Recorder.last.calls if call[0] != "warning"] == [
        ("start", 0),
        ("round", 1),
        ("round", 2),
        ("end", status),
    ]


def test_a_missing_library_is_one_sentence(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.delitem(sys.modules, "server.tracking.tensorboard", raising=False)
    with pytest.raises(ConfigError, match=r"pip install 'federated-zo-asr\[tensorboard\]'") as caught:
        choice.trackers_of(settings(report_to="tensorboard"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("no_such_module:Mine", "No module named 'no_such_module'"),
        ("json:Mine", "has no attribute 'Mine'"),
        ("json:JSONEncoder", "name a subclass of server.Tracker"),
    ],
)
def test_a_name_that_leads_to_no_tracker_is_refused(settings: Settings, name: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        choice.trackers_of(settings(report_to=name))


@pytest.mark.usefixtures("own_trackers")
def test_a_tracker_that_cannot_be_made_or_imported_is_one_sentence(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_trackers.py").write_text("raise RuntimeError('no key\\nis set')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name, expected in (
        ("own_trackers:NeedsKey", "cannot be made .TypeError: .*key.*: a tracker is made without arguments"),
        ("broken_trackers:Mine", "cannot be imported .RuntimeError: no key is set.: name a module"),
    ):
        with pytest.raises(ConfigError, match=expected) as caught:
            choice.trackers_of(settings(report_to=name))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["tensorbord", "", "none,tensorboard", "tensorboard,"])
def test_an_unknown_tracker_is_refused(settings: Settings, name: str) -> None:
    with pytest.raises(ConfigError, match=f"report-to is '{name}', expected none, or"):
        settings(report_to=name)


def test_a_tracker_named_twice_is_made_once(settings: Settings) -> None:
    assert settings(report_to="tensorboard, tensorboard").trackers == ("tensorboard",)


def test_no_trackers_library_is_imported_unless_asked_for() -> None:
    libraries = ["tensorboard", "torch.utils.tensorboard", "mlflow", "wandb"]
    code = f"import sys, server.app; print([name for name in {libraries} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert found.stdout.strip() == "[]"
