"""What the ServerApp leaves in the output directory, and how it ends on a user's error."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fake_grid import FakeGrid
from flwr.app import Context, RecordDict
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from server.app import friendly_main, make_server_app
from server.rounds.federation import Events
from server.run.farewell import RunFailed
from zo_common.config.run import RunConfig
from zo_common.console import LineHandler
from zo_common.errors import ConfigError
from zo_common.ledger.file import read_ledger
from zo_common.ledger.replay import replay, restore_state
from zo_common.models.load import load_model
from zo_common.speech.speech_model import Transcript

Settings = Callable[..., RunConfig]
Grids = Callable[..., FakeGrid]


def _run(config: RunConfig, grid: FakeGrid) -> Path:
    make_server_app(config, Events())(grid, _context(config))
    return Path(config.output)


def _context(config: RunConfig) -> Context:
    return Context(1, 1, {}, RecordDict(), config.to_mapping())


def _same_weights(directory: Path, output: Path, model: str) -> None:
    """The saved model is base + ledger, tensor by tensor."""
    ledger = read_ledger(output / "ledger.zo", tolerate_torn=False)
    expected = load_model(model).model
    replay(restore_state(expected, ledger.header), ledger)
    saved = WhisperForConditionalGeneration.from_pretrained(directory).state_dict()
    for name, value in expected.state_dict().items():
        assert torch.equal(saved[name], value), name


def test_ledger_rounds_and_a_model_that_loads(settings: Settings, grid_of: Grids) -> None:
    config = settings()

    output = _run(config, grid_of(config))

    assert {p.name for p in output.iterdir()} == {
        ".lock",
        "ledger.zo",
        "rounds.jsonl",
        "run.log",
        "introductions.jsonl",
        "settings.jsonl",
        "devices.json",
        "evaluation.json",
        "model",
    }
    _same_weights(output / "model", output, config.model)
    assert WhisperProcessor.from_pretrained(output / "model").tokenizer("hello").input_ids
    found = json.loads((output / "evaluation.json").read_text())
    assert found["checksum"] == f"{read_ledger(output / 'ledger.zo').records[-1].checksum:016x}"
    assert (found["before"], found["after"], found["curve"]) == (None, None, [])


def test_the_model_of_a_resumed_run_is_the_new_state(settings: Settings, grid_of: Grids) -> None:
    config = settings(num_server_rounds=2)
    output = _run(config, grid_of(config))

    _run(replace(config, num_server_rounds=4, resume=True), grid_of(config))

    assert read_ledger(output / "ledger.zo").last_round == 4
    _same_weights(output / "model", output, config.model)
    assert not list(output.glob(".model*"))


def test_somebody_elses_model_in_the_output_is_refused_before_the_first_round(
    settings: Settings, grid_of: Grids
) -> None:
    config = settings()
    kept = Path(config.output) / "model" / "weights.txt"
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")

    with pytest.raises(ConfigError, match="exists already: name another output"):
        _run(config, grid_of(config))

    assert kept.read_text() == "mine"
    assert not (Path(config.output) / "ledger.zo").exists()


@pytest.mark.parametrize("evaluate_on", ["server", "clients"])
def test_the_curve_survives_a_resume(
    settings: Settings, grid_of: Grids, monkeypatch: pytest.MonkeyPatch, evaluate_on: str
) -> None:
    """Decoding is replaced by a fixed word: a random model writes nonsense to the last of its 448 tokens."""
    monkeypatch.setattr(
        "zo_common.speech.whisper_model.WhisperModel.transcribe",
        lambda self, examples, **_: [Transcript("anna counts to")] * len(examples),
    )
    config = settings(
        num_server_rounds=2,
        eval_split="test",
        evaluate_every=1,
        evaluate_on=evaluate_on,
        partition_by="iid",
        guard_split="none",  # its records would be evaluated, too
    )
    grid = grid_of(config)
    output = _run(config, grid)

    _run(replace(config, num_server_rounds=4, resume=True), grid)

    found = json.loads((output / "evaluation.json").read_text())
    assert [row["server_round"] for row in found["curve"]] == [0, 1, 2, 3, 4]
    assert (found["before"], found["after"]) == (found["curve"][0], found["curve"][-1])
    assert found["before"]["utterances"] == 3
    assert found["curve"][0]["payload"] == {"up": 0, "down": 0}
    sent = [row["payload"]["up"] for row in found["curve"]]
    assert sent == [3 * 67 * done for done in range(5)]
    assert found["before"]["loss"] != found["after"]["loss"]
    compared = found["comparison"]
    assert (compared["utterances"], compared["change"], compared["interval"]) == (3, 0.0, [0.0, 0.0])
    assert compared["resampled"] == {"server": "utterances", "clients": "devices"}[evaluate_on]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding is a fixed word."""
    monkeypatch.setattr(
        "zo_common.speech.whisper_model.WhisperModel.transcribe",
        lambda self, examples, **_: [Transcript("anna counts to")] * len(examples),
    )


@pytest.mark.usefixtures("decoded")
@pytest.mark.parametrize("line", ["{}", '{"server_round": "x", "loss": null}', '{"server_round": 0, "loss": 2.0}'])
@pytest.mark.parametrize("evaluate_on", ["server", "clients"])
def test_lines_without_their_fields_stop_no_resume(
    settings: Settings, grid_of: Grids, evaluate_on: str, line: str
) -> None:
    config = settings(num_server_rounds=1, eval_split="test", evaluate_on=evaluate_on, guard_split="none")
    grid = grid_of(config)
    output = _run(config, grid)
    before = {"server": "transcripts-before.jsonl", "clients": "devices-before.jsonl"}[evaluate_on]
    for name in ("curve.jsonl", before):
        kept = (output / name).read_text()
        (output / name).write_text(f"{line}\n{kept}")

    _run(replace(config, num_server_rounds=2, resume=True), grid)

    found = json.loads((output / "evaluation.json").read_text())
    assert [row["server_round"] for row in found["curve"]] == [0, 1, 2]
    assert found["comparison"]["utterances"] == 3
    assert json.loads((output / "curve.jsonl").read_text().splitlines()[0]) == found["curve"][0]


@pytest.mark.usefixtures("decoded")
@pytest.mark.parametrize("lost", [False, True])
def test_a_resumed_runs_first_evaluation_is_whole(settings: Settings, grid_of: Grids, lost: bool) -> None:
    """`eval-split` is added by the resume, or the curve is lost; between the ends nothing is decoded."""
    config = settings(num_server_rounds=2, evaluate_every=1, eval_split="test" if lost else "", guard_split="none")
    grid = grid_of(config)
    output = _run(config, grid)
    if lost:
        (output / "curve.jsonl").unlink()

    _run(replace(config, num_server_rounds=4, resume=True, eval_split="test"), grid)

    found = json.loads((output / "evaluation.json").read_text())
    assert [(row["server_round"], row.get("utterances")) for row in found["curve"]] == [(2, 3), (3, None), (4, 3)]
    heard = [json.loads(line) for line in (output / "transcripts-before.jsonl").read_text().splitlines()]
    assert [row["hypothesis"] for row in heard] == ["anna counts to"] * 3
    assert [(row["reference"], row["columns"]) for row in heard] == [
        (f"dora counts to {index}", {"speaker": "dora"}) for index in range(3)
    ]
    compared = found["comparison"]
    assert (compared["metric"], compared["utterances"], compared["units"]) == ("wer", 3, 12)
    assert (compared["change"], compared["interval"], compared["groups"]) == (0.0, [0.0, 0.0], {})  # one speaker
    assert {"wer", "wer_interval", "cer_interval", "loss"} <= found["before"].keys() & found["after"].keys()


@pytest.mark.usefixtures("decoded")
@pytest.mark.parametrize("some", [0, 2])
def test_a_last_evaluation_that_was_one_in_between_is_redone(settings: Settings, grid_of: Grids, some: int) -> None:
    config = settings(
        num_server_rounds=3, evaluate_every=1, eval_split="test", guard_split="none", eval_utterances=some
    )
    grid = grid_of(config)

    def stop(server_round: int) -> None:
        if server_round == 3:
            raise KeyboardInterrupt

    grid.on_push = stop
    with pytest.raises(KeyboardInterrupt):
        _run(config, grid)
    grid.on_push = lambda server_round: None
    output = Path(config.output)
    before = [json.loads(line) for line in (output / "curve.jsonl").read_text().splitlines()]
    assert [row.get("utterances", 0) for row in before] == [3, some, some]

    _run(replace(config, num_server_rounds=2, resume=True), grid)

    found = json.loads((output / "evaluation.json").read_text())["curve"]
    assert [(row["server_round"], row.get("utterances", 0)) for row in found] == [(0, 3), (1, some), (2, 3)]
    assert found[-1]["loss"] == before[-1]["loss"]
    assert [json.loads(line) for line in (output / "curve.jsonl").read_text().splitlines()] == found


def test_a_users_error_is_one_sentence_and_exit_status_one(
    settings: Settings, grid_of: Grids, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(model="/nowhere/model")
    grid = grid_of(settings())

    with pytest.raises(SystemExit) as ended:
        friendly_main()(grid, _context(config))

    assert ended.value.code == 1
    said = capsys.readouterr().out
    assert said.startswith("error: model '/nowhere/model' is neither")
    assert len(said.splitlines()) == 1


def test_a_failed_run_has_the_last_word_in_flowers_log(
    settings: Settings, grid_of: Grids, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a thread, as Flower's simulation runs it, and with what Flower logs of an exception and of its end."""
    config = settings(model="/nowhere/model")
    grid = grid_of(settings())
    app = friendly_main(config)
    caught: list[Exception] = []

    def serve() -> None:
        try:
            app(grid, Context(1, 1, {}, RecordDict(), {}))
        except Exception as error:
            caught.append(error)

    flower, lines = logging.getLogger("flwr"), list[str]()
    handler = LineHandler(lines.append)
    flower.addHandler(handler)
    try:
        thread = threading.Thread(target=serve)
        thread.start()
        thread.join()
        (failure,) = caught
        flower.error("%s raised an exception", "Simulation", exc_info=failure)
        flower.error("%s raised an exception", "Another", exc_info=ValueError("of somebody else"))
        flower.error("Exit Code: 700\n\nFor more information, visit: <https://flower.ai>")
    finally:
        flower.removeHandler(handler)
        for each in list(flower.filters):
            flower.removeFilter(each)

    first, *others = capsys.readouterr().out.splitlines()
    assert first.startswith("error: model '/nowhere/model' is neither") and not others
    assert isinstance(failure, RunFailed) and str(failure) == first.replace("error:", "the run failed:")
    assert lines[0] == "Simulation raised an exception"
    assert lines[1].splitlines()[-1] == "ValueError: of somebody else"
    assert lines[2] == f"Exit Code: 700\n\nFor more information, visit: <https://flower.ai>\n{failure}"
