"""A federation on a CTC model, and federations whose devices have no transcripts: the same path, to the bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_grid import FakeGrid
from flwr.app import Context, RecordDict
from transformers import Wav2Vec2ForCTC, Wav2Vec2Processor
from typer.testing import CliRunner

from server.app import check_before_start, make_server_app
from server.commands import ledger as ledger_cli
from server.rounds.federation import Federation
from zo_common.config.run import RunConfig
from zo_common.errors import ConfigError
from zo_common.lattice.state import LatticeState
from zo_common.ledger.ledger import Ledger
from zo_common.ledger.replay import replay, restore_state
from zo_common.models.load import load_model
from zo_common.speech.model_kinds import speech_model

Settings = Callable[..., RunConfig]
Grids = Callable[..., FakeGrid]
Federate = Callable[..., Federation]
Ledgers = Callable[[RunConfig], Ledger]


def _serve(config: RunConfig, grid: FakeGrid) -> dict[str, Any]:
    """Run the whole ServerApp; its summary."""
    app = make_server_app(config)
    app(grid, Context(1, 1, {}, RecordDict(), config.to_mapping()))
    found: dict[str, Any] = json.loads((Path(config.output) / "evaluation.json").read_text())
    return found


@pytest.mark.parametrize("evaluate_on", ["server", "clients"])
def test_a_supervised_run_on_a_ctc_model(
    ctc_settings: Settings, grid_of: Grids, ledger_of: Ledgers, evaluate_on: str
) -> None:
    devices = 3 if evaluate_on == "server" else 1
    by = "speaker" if devices == 3 else "iid"
    config = ctc_settings(evaluate_every=1, evaluate_on=evaluate_on, partition_by=by)
    grid = grid_of(config, devices)

    found = _serve(config, grid)

    ledger = ledger_of(config)
    model = load_model(config.model).model
    checksum = replay(restore_state(model, ledger.header, threads=1), ledger)
    assert f"{checksum:016x}" == found["checksum"]
    assert [len(record.contributions) for record in ledger.records] == [devices] * 3
    # a device applies a round when it hears of it: with the last evaluation, or one behind
    last = -1 if evaluate_on == "clients" else -2
    assert {d.engine.state.checksum() for d in grid.devices.values()} == {ledger.records[last].checksum}
    saved = load_model(str(Path(config.output) / "model"))
    assert speech_model(saved).name == "CTC"
    assert saved.processor.tokenizer("ANNA").input_ids
    for name, value in model.state_dict().items():
        assert torch.equal(saved.model.state_dict()[name], value), name
    curve = found["curve"]
    assert [row["server_round"] for row in curve] == [0, 1, 2, 3]
    assert [row["utterances"] for row in (curve[0], curve[-1])] == [3, 3]
    assert all(np.isfinite(row["loss"]) for row in curve) and curve[0]["loss"] != curve[-1]["loss"]


def test_from_recordings_without_transcripts_to_a_model_for_use(
    ctc_settings: Settings, grid_of: Grids, ledger_of: Ledgers, untold_corpus: Path, tmp_path: Path
) -> None:
    """Only the server's held-out splits are labelled; ledger, guard, evaluation and export are those of any run."""
    config = ctc_settings(
        objective="suta", data=str(untold_corpus), guard_split="test", guard_every=1, learning_rate=1e-4
    )
    grid = grid_of(config)

    found = _serve(config, grid)

    ledger = ledger_of(config)
    assert [len(record.contributions) for record in ledger.records] == [3] * 3
    rebuilt = tmp_path / "rebuilt"
    done = CliRunner().invoke(ledger_cli.app, ["replay", str(Path(config.output) / "ledger.zo"), str(rebuilt)])
    assert done.exit_code == 0, done.output
    model = Wav2Vec2ForCTC.from_pretrained(rebuilt)
    exported = Wav2Vec2ForCTC.from_pretrained(Path(config.output) / "model").state_dict()
    assert all(torch.equal(exported[name], value) for name, value in model.state_dict().items())
    exponents = ledger.header.exponents
    held = LatticeState(model, ",".join(exponents), config.scale, exponents=exponents)
    assert f"{held.checksum():016x}" == found["checksum"] != f"{ledger.header.base_checksum:016x}"
    processor = Wav2Vec2Processor.from_pretrained(rebuilt)
    heard = model(processor(np.zeros(16000, np.float32), sampling_rate=16000, return_tensors="pt").input_values)
    assert isinstance(processor.batch_decode(heard.logits.argmax(dim=2))[0], str)
    assert found["before"]["utterances"] == found["after"]["utterances"] == 3
    assert len((Path(config.output) / "guard.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize("objective", ["suta", "entropy"])
def test_devices_without_transcripts_adapt_a_ctc_model(
    ctc_settings: Settings, federate: Federate, ledger_of: Ledgers, untold_corpus: Path, observed: Any, objective: str
) -> None:
    config = ctc_settings(objective=objective, data=str(untold_corpus))

    federation = federate(config)

    ledger = ledger_of(config)
    assert [len(record.contributions) for record in ledger.records] == [3] * 3
    assert all(np.any(c.coefficients) for record in ledger.records for c in record.contributions)
    assert ledger.header.settings["objective"] == objective
    model = load_model(config.model).model
    assert replay(restore_state(model, ledger.header, threads=1), ledger) == federation.checksum
    assert f"objective {objective} has no guard against collapse" in observed.text


@pytest.mark.parametrize("objective", ["entropy", "self-training"])
def test_devices_without_transcripts_adapt_whisper(
    settings: Settings,
    federate: Federate,
    ledger_of: Ledgers,
    untold_corpus: Path,
    monkeypatch: pytest.MonkeyPatch,
    objective: str,
) -> None:
    monkeypatch.setattr("zo_common.models.whisper.transcribe.MAX_NEW_TOKENS", 5)  # a random model never ends
    config = settings(
        objective=objective,
        data=str(untold_corpus),
        trained_tensors="decoder",
        epsilon=2.0**-6,  # at 1e-3 the entropies, nearly that of chance, differ by a few float32 steps, or by none
        num_server_rounds=1,
        local_steps=1,
        batch_size=1,
        learning_rate=1e-3,
        round_timeout=300.0,
    )

    federation = federate(config)

    ledger = ledger_of(config)
    assert [len(record.contributions) for record in ledger.records] == [3]
    assert all(np.any(c.coefficients) for record in ledger.records for c in record.contributions)
    model = load_model(config.model).model
    assert replay(restore_state(model, ledger.header, threads=1), ledger) == federation.checksum


def test_a_supervised_run_has_no_use_for_devices_without_transcripts(
    ctc_settings: Settings, grid_of: Grids, untold_corpus: Path
) -> None:
    config = ctc_settings(data=str(untold_corpus))

    with pytest.raises(Exception, match=r"text column 'transcription' not found in train/metadata\.csv"):
        Federation(config, grid_of(config))


@pytest.mark.parametrize(
    ("family", "objective", "names"),
    [("whisper", "suta", "supervised, entropy, self-training"), ("ctc", "self-training", "supervised, suta, entropy")],
)
def test_an_objective_of_the_other_family_is_one_sentence(
    settings: Settings, ctc_settings: Settings, family: str, objective: str, names: str
) -> None:
    config = (settings if family == "whisper" else ctc_settings)(objective=objective)

    with pytest.raises(ConfigError, match=rf"objective is '{objective}', but .* model: use one of {names}$"):
        check_before_start(config)
