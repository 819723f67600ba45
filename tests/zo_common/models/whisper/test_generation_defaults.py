"""Whisper checkpoints without a generation config, or with one of 2022, decode as the complete one does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from zo_common.models.load import load_model
from zo_common.models.whisper.generation_defaults import complete_generation_config
from zo_common.models.whisper.transcribe import greedy_tokens

# as transformers 4.25 wrote it for whisper-tiny.en
OLD = {
    "bos_token_id": 50257, "decoder_start_token_id": 50257, "eos_token_id": 50256, "pad_token_id": 50256,
    "_from_model_config": True, "begin_suppress_tokens": [220, 50256], "max_length": 448,
    "forced_decoder_ids": [[1, 50362]],
}  # fmt: skip


@pytest.mark.parametrize("kept", [None, OLD], ids=["none", "old"])
def test_an_incomplete_checkpoint_decodes(whisper_dir: Path, tmp_path: Path, kept: dict[str, object] | None) -> None:
    folder = tmp_path / "model"
    shutil.copytree(whisper_dir, folder, copy_function=lambda a, b: Path(b).symlink_to(a))
    (folder / "generation_config.json").unlink()
    if kept is not None:
        (folder / "generation_config.json").write_text(json.dumps(kept))
    complete, (model, processor) = load_model(str(whisper_dir)).model, load_model(str(folder))

    settings = model.generation_config
    assert settings.is_multilingual is False
    assert settings.no_timestamps_token_id == complete.generation_config.no_timestamps_token_id
    window = torch.zeros(80, 3000)
    (tokens,) = greedy_tokens(model, processor, [window])
    assert all(isinstance(token, int) for token in tokens)


def test_a_multilingual_model_gets_languages_and_tasks(tiny_whisper_dir: Path) -> None:
    model, processor = load_model(str(tiny_whisper_dir))
    given = model.generation_config
    wanted = {name: getattr(given, name) for name in ("lang_to_id", "task_to_id", "no_timestamps_token_id")}
    for name in wanted:
        delattr(given, name)
    given.is_multilingual = True
    complete_generation_config(model, processor.tokenizer)

    assert wanted["lang_to_id"].items() <= given.lang_to_id.items()
    assert given.task_to_id == wanted["task_to_id"]
    assert given.no_timestamps_token_id == wanted["no_timestamps_token_id"]


def test_what_a_checkpoint_says_stays(whisper_dir: Path) -> None:
    model, processor = load_model(str(whisper_dir))
    model.generation_config.is_multilingual = True
    model.generation_config.lang_to_id = {"<|en|>": 1}
    complete_generation_config(model, processor.tokenizer)
    assert model.generation_config.lang_to_id == {"<|en|>": 1}
