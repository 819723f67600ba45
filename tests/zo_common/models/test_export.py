"""An exported model is what other programs take: with every file of its processor, converted by CTranslate2."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from transformers import GenerationConfig

from zo_common.errors import ConfigError, ExportFailed
from zo_common.models.card import model_card
from zo_common.models.export import export_model
from zo_common.models.load import load_model


def test_the_processor_is_complete_and_ctranslate2_converts_it(tiny_whisper_dir: Path, tmp_path: Path) -> None:
    from ctranslate2.converters import TransformersConverter

    folder = export_model(*load_model(str(tiny_whisper_dir))[:2], tmp_path / "model")

    features = json.loads((folder / "preprocessor_config.json").read_text())
    assert (features["feature_extractor_type"], features["sampling_rate"]) == ("WhisperFeatureExtractor", 16_000)
    files = ["tokenizer.json", "preprocessor_config.json"]
    converted = Path(TransformersConverter(str(folder), copy_files=files).convert(str(tmp_path / "ct2")))
    assert {"model.bin", *files} <= {path.name for path in converted.iterdir()}


def test_nothing_is_written_over(tiny_whisper_dir: Path, tmp_path: Path) -> None:
    loaded = load_model(str(tiny_whisper_dir))[:2]
    export_model(*loaded, tmp_path / "model")
    with pytest.raises(ConfigError, match="exists and is not empty"):
        export_model(*loaded, tmp_path / "model")
    export_model(*loaded, tmp_path / "model", replace=True)


@pytest.mark.parametrize("language", ["de", "German", "de-AT"])
def test_a_multilingual_model_speaks_the_runs_language(tiny_whisper_dir: Path, tmp_path: Path, language: str) -> None:
    model, processor = load_model(str(tiny_whisper_dir))
    model.generation_config.is_multilingual = True
    model.generation_config.forced_decoder_ids = [[1, 50259]]

    folder = export_model(model, processor, tmp_path / "model", language=language)

    saved = GenerationConfig.from_pretrained(folder)
    assert (saved.language, saved.task) == ("de", "transcribe")
    assert getattr(saved, "forced_decoder_ids", None) is None


def test_an_english_model_is_told_no_language(tiny_whisper_dir: Path, tmp_path: Path) -> None:
    """transformers refuses to be told one."""
    model, processor = load_model(str(tiny_whisper_dir))
    model.generation_config.is_multilingual = False

    saved = GenerationConfig.from_pretrained(export_model(model, processor, tmp_path / "model", language="en"))

    assert getattr(saved, "language", None) is None


def test_the_card_says_language_base_and_rates(tiny_whisper_dir: Path, tmp_path: Path) -> None:
    rates = {"headline": "cer", "normalizer": "Whisper's basic normaliser, marks kept", "utterances": 7, "loss": 1.0}
    before = {**rates, "wer": 1.0, "cer": 0.25, "raw_wer": 1.0, "raw_cer": 0.3}
    after = {**rates, "wer": 0.9, "cer": 0.125, "raw_wer": 1.0, "raw_cer": 0.2}
    text = model_card("openai/whisper-base", "Chinese", rounds=40, trained="norms", before=before, after=after)

    folder = export_model(*load_model(str(tiny_whisper_dir)), tmp_path / "model", card=text)

    card = ModelCard.load(folder / "README.md")
    assert (card.data.language, card.data.base_model, card.data.metrics) == ("zh", "openai/whisper-base", ["cer"])
    assert card.data.pipeline_tag == "automatic-speech-recognition"
    rows = [line for line in card.text.splitlines() if line.startswith("|")]
    assert rows[2:4] == ["| CER | 25.0% | 12.5% |", "| CER, raw | 30.0% | 20.0% |"]
    assert "Whisper's basic normaliser, marks kept" in card.text
    assert "40 rounds" in card.text


def test_a_card_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    text = model_card(str(tmp_path / "my-base"), "de", rounds=1, trained="norms")

    assert str(tmp_path) not in text
    assert "# my-base, adapted" in text
    assert ModelCard(text).data.base_model is None


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tiny_whisper_dir: Path, tmp_path: Path) -> None:
    """In a process of its own, which may write no file of more than 100 kB: the weights are larger."""
    program = f"""
import resource, signal
from pathlib import Path
from zo_common.errors import ExportFailed
from zo_common.models.export import export_model
from zo_common.models.load import load_model
loaded = load_model({str(tiny_whisper_dir)!r})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    export_model(*loaded, Path({str(tmp_path)!r}) / "model")
except ExportFailed as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=100)

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"the model cannot be written to {tmp_path}/model (")
    assert "File too large" in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_parent_that_is_a_file(tiny_whisper_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(ExportFailed, match="cannot be written to"):
        export_model(*load_model(str(tiny_whisper_dir)), tmp_path / "file" / "model")
