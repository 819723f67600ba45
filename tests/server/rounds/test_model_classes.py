"""Every class of speech models through a round, an export and, where it has a CTC head, an adaptation."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile as sf
import torch
from fake_grid import FakeGrid, Memory
from flwr.app import Context, RecordDict
from tiny_ctc import noise_waves
from tiny_models import CTC, TOKENS, TORCHAUDIO_CTC, write_ctc, write_mms, write_tokens
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)

from client.adapt.adapter import Adapter, AdaptSettings
from server.app import make_server_app
from zo_common.config.run import RunConfig
from zo_common.errors import ConfigError
from zo_common.ledger.file import read_ledger
from zo_common.ledger.replay import replay, restore_state
from zo_common.models.load import load_model
from zo_common.speech.model_kinds import speech_model

Settings = Callable[..., RunConfig]
TEXTS = ("an tan", "two cats’ can")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recordings of two seconds, one of 1.5 s to be judged on."""
    folder = tmp_path_factory.mktemp("classes")
    for split, samples in (("train", (32000, 32000)), ("test", (24000,))):
        (folder / split).mkdir()
        rows = [("file_name", "transcription", "speaker")]
        for index, wave in enumerate(noise_waves(*samples)):
            sf.write(folder / split / f"{index}.wav", wave, 16000)
            rows.append((f"{index}.wav", TEXTS[index], "anna"))
        with (folder / split / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
    return folder


def run_once(config: RunConfig) -> FakeGrid:
    """One device, one round, and the model that is exported."""
    grid = FakeGrid(config, [Memory()])
    app = make_server_app(config)
    app(grid, Context(1, 1, {}, RecordDict(), config.to_mapping()))
    return grid


def check_round(config: RunConfig) -> None:
    """Device, server, replay and export hold the same weights, which are not the base's."""
    grid = run_once(config)
    ledger = read_ledger(Path(config.output) / "ledger.zo")
    loaded = load_model(config.model, language=config.language)
    state = restore_state(loaded.model, ledger.header, threads=1)
    base = state.checksum()
    checksum = replay(state, ledger)
    assert checksum != base
    assert grid[0].engine.state.checksum() == ledger.records[-1].checksum == checksum
    exported = load_model(str(Path(config.output) / "model"), language=config.language)
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(exported.model.state_dict()[name], value), name
    speech = speech_model(exported)
    wave = noise_waves(16000)[0]
    assert isinstance(speech.transcribe([speech.reader().of_wave(wave)])[0].text, str)


@pytest.fixture
def one_round(settings: Settings, corpus: Path) -> Settings:
    """Settings of a run of one round."""
    one = {"num_server_rounds": 1, "local_steps": 1, "final_sync": True, "guard_split": "none"}
    return lambda **changes: settings(**{"data": str(corpus), "learning_rate": 1e-3, **one, **changes})


@pytest.mark.parametrize("kind", [*CTC, TORCHAUDIO_CTC])
def test_a_ctc_class(kind: str, one_round: Settings, tmp_path: Path) -> None:
    if kind == TORCHAUDIO_CTC:
        pytest.importorskip("torchaudio", exc_type=Exception)  # an OSError where it is of another PyTorch build
    model = write_ctc(kind, tmp_path / "model")

    check_round(one_round(model=str(model)))

    adapter = Adapter(load_model(str(model)), AdaptSettings(steps=1, num_queries=2))
    result = adapter.adapt(noise_waves(16000)[0])
    assert result.record.steps == 1 and result.reached != adapter.base_checksum
    assert adapter.state.checksum() == adapter.base_checksum


def test_a_language_of_mms(one_round: Settings, tmp_path: Path) -> None:
    config = one_round(model=str(write_mms(tmp_path / "model")), language="fr")

    check_round(config)

    base, exported = (load_model(p, language="fra").model for p in (config.model, str(Path(config.output) / "model")))
    assert base.lm_head.weight.shape[0] == exported.lm_head.weight.shape[0] == 27


@pytest.mark.parametrize("kind", TOKENS)
def test_a_class_that_writes_tokens(
    kind: str, one_round: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zo_common.models.tokens.transcribe.MAX_NEW_TOKENS", 5)
    model = write_tokens(kind, tmp_path / "model")

    check_round(one_round(model=str(model), eval_split="test", learning_rate="auto"))

    with pytest.raises(ConfigError, match="model cannot adapt without transcripts"):
        Adapter(load_model(str(model)))


@pytest.mark.parametrize("mels", [80, 128])
def test_whisper_of_both_numbers_of_mels(
    mels: int, one_round: Settings, tiny_whisper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zo_common.models.whisper.transcribe.MAX_NEW_TOKENS", 5)
    config = WhisperConfig.from_pretrained(tiny_whisper, num_mel_bins=mels)
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig.from_pretrained(tiny_whisper)
    model.save_pretrained(tmp_path / "model")
    tokenizer = WhisperProcessor.from_pretrained(tiny_whisper).tokenizer
    WhisperProcessor(WhisperFeatureExtractor(feature_size=mels), tokenizer).save_pretrained(tmp_path / "model")

    check_round(one_round(model=str(tmp_path / "model"), learning_rate="auto"))
