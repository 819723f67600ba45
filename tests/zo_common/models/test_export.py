"""An exported model is what other programs take: with every file of its processor, converted by CTranslate2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zo_common.errors import ConfigError
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
