"""What people take for a model: each is one sentence with the remedy, before any weight is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_ctc import write_tiny_ctc

from zo_common.errors import ModelNotFound, UnsupportedModel, ZOError
from zo_common.models.load import load_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_ctc(tmp_path_factory.mktemp("ctc"))


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    """A saved model that a test may change."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def _only(folder: Path, **files: str) -> None:
    for entry in folder.iterdir():
        entry.unlink()
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def _trainer(folder: Path) -> None:
    for name in ("processor_config.json", "preprocessor_config.json", "vocab.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)
    (folder / "trainer_state.json").write_text("{}")


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 378\n"
FOLDERS: dict[str, tuple[Callable[[Path], object], type[ZOError], str]] = {
    "peft": (
        lambda d: _only(d, adapter_config__json="{}", adapter_model__safetensors=""),
        UnsupportedModel,
        r"is a PEFT adapter, expected a whole model: merge it first, with .*merge_and_unload\(\)",
    ),
    "ctranslate2": (
        lambda d: _only(d, config__json="{}", model__bin=""),
        UnsupportedModel,
        "is a CTranslate2 model, .*: convert it with `zo-asr sim import-whisper SOURCE OUTPUT`",
    ),
    "ctranslate2 in parts": (lambda d: _only(d, model__bin__part1=""), UnsupportedModel, "is a CTranslate2 model"),
    "torch": (lambda d: _only(d, tiny__pt=""), UnsupportedModel, "holds a PyTorch checkpoint and no config.json"),
    "pointer": (
        lambda d: (d / "model.safetensors").write_text(POINTER),
        ModelNotFound,
        r"\(model.safetensors is a git-lfs pointer, not the file itself\): run `git lfs pull` in it",
    ),
    "trainer": (
        _trainer,
        ModelNotFound,
        r"\(it is a Trainer checkpoint without its processor\): save model and processor with save_pretrained",
    ),
}


@pytest.mark.parametrize(("change", "error", "message"), FOLDERS.values(), ids=list(FOLDERS))
def test_another_programs_folder(
    copied: Path, change: Callable[[Path], object], error: type[ZOError], message: str
) -> None:
    change(copied)

    with pytest.raises(error, match=message) as caught:
        load_model(str(copied))
    assert "\n" not in str(caught.value)


def test_a_file(tmp_path: Path) -> None:
    (tmp_path / "tiny.pt").write_bytes(b"PK")

    with pytest.raises(UnsupportedModel, match=r"tiny.pt' is a file, expected a directory made by save_pretrained"):
        load_model(str(tmp_path / "tiny.pt"))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["lm_head.weight", "wav2vec2.encoder.layers.1.layer_norm.bias"])
def test_weights_that_are_no_numbers_are_refused_by_name(copied: Path, name: str, value: float) -> None:
    tensors = load_file(copied / "model.safetensors")
    tensors[name].reshape(-1)[-1] = value
    save_file(tensors, copied / "model.safetensors", {"format": "pt"})

    with pytest.raises(UnsupportedModel, match=rf"has NaN or infinite values in tensor '{name}', expected numbers"):
        load_model(str(copied))


def test_a_whisper_with_a_nan_is_refused(tiny_whisper_dir: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_whisper_dir, tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.encoder.layers.0.fc1.bias"][0] = torch.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    with pytest.raises(UnsupportedModel, match=r"in tensor 'model.encoder.layers.0.fc1.bias'"):
        load_model(str(folder))
    assert json.loads((folder / "config.json").read_text())["model_type"] == "whisper"
