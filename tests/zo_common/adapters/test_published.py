"""The files of a published adapter: what they say, and what they leave out."""

from __future__ import annotations

import json
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
from called import Call, caller
from dialects import dialect_of
from huggingface_hub import ModelCard
from small_whisper import small_whisper

from zo_common.adapters import hub_cli
from zo_common.adapters.description import CARD_NAME, CONFIG_NAME, FILES, RESULT_NAME
from zo_common.adapters.published import check_adapter
from zo_common.config.run import RunConfig
from zo_common.ledger.file import LEDGER_NAME, ledger_chains, read_ledger, write_ledger
from zo_common.ledger.ledger import Ledger
from zo_common.privacy.charges import LOG_NAME, Charge, PrivacyLog

BASE = "openai/whisper-small-one"
RATES = {"headline": "wer", "normalizer": "Whisper's English normaliser", "utterances": 7, "loss": 1.0}
RESULT: dict[str, Any] = {
    "command": "zo-asr train /home/anna/speech",
    "config": RunConfig(data="/home/anna/speech", output="/home/anna/out", model="/home/anna/base").to_mapping(),
    "devices": 1,
    "before": {**RATES, "wer": 0.5, "raw_wer": 0.6, "cer": 0.3, "raw_cer": 0.3},
    "after": {**RATES, "wer": 0.4, "raw_wer": 0.5, "cer": 0.2, "raw_cer": 0.2},
    "chosen": {"devices": {"7": "anna's laptop"}},
    "comparison": {
        "metric": "wer", "before": 0.5, "after": 0.4, "change": -0.1, "interval": [-0.15, -0.05],
        "method": "paired bootstrap", "groups": {"speaker": [{"value": "anna"}]},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def ledger() -> Ledger:
    base = small_whisper().requires_grad_(False)
    return dialect_of(base, 1, pattern="encoder", model=BASE, language="English", **{"num-queries": 3})


@pytest.fixture
def run(ledger: Ledger, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    write_ledger(folder / LEDGER_NAME, ledger)
    (folder / RESULT_NAME).write_text(json.dumps(RESULT))
    return folder


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs the command: exit status, stdout, stderr."""
    return caller("zo-asr-hub", hub_cli.main, monkeypatch, capsys)


def test_a_dry_run_writes_the_repository(call: Call, run: Path, ledger: Ledger, tmp_path: Path) -> None:
    made = tmp_path / "made"

    status, out, err = call("push", run, "anna/dialect", "--dry-run", made, "--revision", "abc123")

    checksum = f"{ledger.records[-1].checksum:016x}"
    assert (status, err) == (0, "")
    assert out == f"wrote {made}: 3 rounds, checksum {checksum}\n"
    assert sorted(path.name for path in made.iterdir()) == sorted(FILES)
    assert (made / LEDGER_NAME).read_bytes() == (run / LEDGER_NAME).read_bytes()
    assert json.loads((made / CONFIG_NAME).read_text()) == {
        "adapter_type": "ZO_LEDGER",
        "base_model_name_or_path": BASE,
        "revision": "abc123",
        "base_fingerprint": ledger.header.fingerprint,
        "checksum": checksum,
        "rounds": 3,
        "trained_tensors": "encoder",
        "trained_weights": sum(prod(tensor.shape) for tensor in ledger.header.tensors),
        "language": "English",
        "ledger": LEDGER_NAME,
    }
    assert check_adapter(made).revision == "abc123"


def test_the_card_says_what_it_is(call: Call, run: Path, tmp_path: Path) -> None:
    call("push", run, "anna/dialect", "--dry-run", tmp_path / "made", "--data", "anna/speech", "--license", "cc-by-4.0")

    card = ModelCard.load(tmp_path / "made" / CARD_NAME)
    data = card.data.to_dict()
    assert data | {"tags": []} == {
        "base_model": BASE,
        "base_model_relation": "adapter",
        "datasets": ["anna/speech"],
        "language": "en",
        "library_name": "federated-zo-asr",
        "license": "cc-by-4.0",
        "metrics": ["wer"],
        "pipeline_tag": "automatic-speech-recognition",
        "tags": [],
    }
    for words in (
        "| WER | 50.0% | 40.0% |",
        "WER 50.0% → 40.0%, −10.0 points (95% interval −15.0 … −5.0), paired bootstrap.",
        "Whisper's English normaliser",
        "No differential privacy was asked for",
        "3 directions a step",
        f'load_adapted("{BASE}", "anna/dialect")',
        "arXiv:2512.01267",
    ):
        assert words in card.text


def test_no_file_and_no_person_is_named(call: Call, run: Path, ledger: Ledger, tmp_path: Path) -> None:
    here = replace(ledger.header, model="/home/anna/base", settings=ledger.header.settings | {"data": "/home/anna"})
    write_ledger(run / LEDGER_NAME, Ledger(here, ledger.records))

    status, out, err = call("push", run, "anna/dialect", "--dry-run", tmp_path / "made")
    assert (status, out) == (1, "")
    assert "the base is '/home/anna/base'" in err and "give --base" in err
    assert not (tmp_path / "made").exists()

    status, _, err = call("push", run, "someone/dialect", "--dry-run", tmp_path / "made", "--base", BASE)
    assert (status, err) == (0, "")
    found = read_ledger(tmp_path / "made" / LEDGER_NAME)
    assert found.header.model == BASE and found.records == ledger.records
    for name in (CONFIG_NAME, RESULT_NAME, CARD_NAME):
        assert "anna" not in (tmp_path / "made" / name).read_text()
    assert "anna" not in json.dumps(found.header.settings)


def test_privacy_spent_is_told(call: Call, run: Path, ledger: Ledger, tmp_path: Path) -> None:
    settings = ledger.header.settings | {"privacy": "example", "target-delta": 1e-6}
    write_ledger(run / LEDGER_NAME, Ledger(replace(ledger.header, settings=settings), ledger.records))

    status, _, err = call("push", run, "anna/dialect", "--dry-run", tmp_path / "made")
    assert status == 1 and "the privacy that the run has spent is unknown" in err

    log = PrivacyLog.create(run / LOG_NAME)
    chain = ledger_chains(run / LEDGER_NAME)[0].hex()
    log.append(Charge(1, chain, "example", 2.0, 1, 16, {100: [1, 2]}, 1.0, 1e-6))
    status, _, err = call("push", run, "anna/dialect", "--dry-run", tmp_path / "made")

    assert (status, err) == (0, "")
    text = (tmp_path / "made" / CARD_NAME).read_text()
    assert "1e-06)-differential privacy of one utterance" in text
    assert "The run kept (" in text and "No differential privacy" not in text


def test_a_ledger_alone_is_enough(call: Call, run: Path, tmp_path: Path) -> None:
    (run / RESULT_NAME).unlink()

    status, _, err = call("push", run / LEDGER_NAME, "anna/dialect", "--dry-run", tmp_path / "made")

    assert (status, err) == (0, "")
    text = (tmp_path / "made" / CARD_NAME).read_text()
    assert "None were measured." in text and "The publisher does not say." in text
    assert json.loads((tmp_path / "made" / RESULT_NAME).read_text()) == {}


def test_nothing_is_written_over(call: Call, run: Path, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "mine").write_text("")

    status, _, err = call("push", run, "anna/dialect", "--dry-run", tmp_path / "made")

    assert status == 1 and "exists and is not empty: name a new directory" in err
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["mine"]


def test_an_output_that_cannot_be_written(call: Call, run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    status, out, err = call("push", run, "anna/dialect", "--dry-run", tmp_path / "file" / "made")

    assert (status, out) == (1, "")
    assert "the adapter cannot be written to" in err and len(err.splitlines()) == 1
