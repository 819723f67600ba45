"""Base models load ready for the lattice, or fail in one sentence that says what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import BertConfig

from zo_common.errors import ConfigError, ModelNotFound, UnsupportedModel
from zo_common.lattice.fingerprint import fingerprint
from zo_common.lattice.state import LatticeState
from zo_common.lattice.update import Update
from zo_common.models.foreign import refuse_damaged
from zo_common.models.frozen.load import load_held
from zo_common.models.load import load_model


@pytest.fixture
def copied(tiny_whisper_dir: Path, tmp_path: Path) -> Path:
    """A saved model that a test may damage."""
    return Path(shutil.copytree(tiny_whisper_dir, tmp_path / "model"))


def test_a_saved_model_is_frozen_float32_and_in_eval_mode(tiny_whisper_dir: Path) -> None:
    model, processor = load_model(str(tiny_whisper_dir))

    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in model.parameters())
    assert processor.tokenizer.convert_tokens_to_ids("<|endoftext|>") == model.config.eos_token_id
    assert processor.feature_extractor.feature_size == model.config.num_mel_bins


def test_loading_twice_gives_one_fingerprint(tiny_whisper_dir: Path) -> None:
    first, second = (load_model(str(tiny_whisper_dir)).model for _ in range(2))
    expected = fingerprint(first)

    LatticeState(second, "encoder-ffn", threads=1)
    assert fingerprint(second) == expected
    LatticeState(second, "encoder-ffn", threads=1).apply([Update(1, 1e-3)])
    assert fingerprint(second) != expected


def test_half_precision_checkpoints_are_widened(copied: Path) -> None:
    model = load_model(str(copied)).model
    expected = {name: p.half().float() for name, p in model.named_parameters()}
    model.half().save_pretrained(copied)
    assert json.loads((copied / "config.json").read_text())["dtype"] == "float16"

    again = load_model(str(copied)).model

    assert all(torch.equal(p, expected[name]) for name, p in again.named_parameters())
    assert {p.dtype for p in again.parameters()} == {torch.float32}


@pytest.mark.parametrize("source", ["openai/whisper-of-nobody", "no-such-model", "/no/such/directory", "a b c"])
def test_neither_a_directory_nor_a_reachable_id(source: str) -> None:
    with pytest.raises(ModelNotFound) as caught:
        load_model(source)

    message = str(caught.value)
    assert message.startswith(f"model {source!r} is neither a local directory nor a hub id that can be reached: ")
    assert "\n" not in message


def test_other_architectures_are_refused_before_their_weights_are_read(tmp_path: Path) -> None:
    BertConfig().save_pretrained(tmp_path)

    with pytest.raises(UnsupportedModel, match="a 'bert' model, supported are: WhisperForConditional"):
        load_model(str(tmp_path))


def _with(name: str, **changes: Any) -> Callable[[Path], object]:
    """Return a function that sets fields of a JSON file of a saved model."""

    def change(directory: Path) -> None:
        (directory / name).write_text(json.dumps(json.loads((directory / name).read_text()) | changes))

    return change


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no config": lambda d: (d / "config.json").unlink(),
    "broken config": lambda d: (d / "config.json").write_text("{"),
    "unknown type": lambda d: (d / "config.json").write_text('{"model_type": "unheard-of"}'),
    "no weights": lambda d: (d / "model.safetensors").unlink(),
    "no processor": lambda d: (d / "processor_config.json").unlink(),
    "broken tokenizer": lambda d: (d / "tokenizer.json").write_text("{"),
    "nothing": lambda d: [p.unlink() for p in d.iterdir()],
    "a fraction for a width": _with("config.json", d_model=32.0),
    "text for a number": _with("config.json", dropout="0.1"),
    "null for a number": _with("config.json", encoder_layers=None),
    "unknown activation": _with("config.json", activation_function="unheard-of"),
    "vocabulary below 0": _with("config.json", vocab_size=-1),
    "unknown kind of tokenizer": _with("tokenizer.json", model={"type": "unheard-of"}),
    "empty tokenizer": lambda d: (d / "tokenizer.json").write_text("{}"),
    "processor of another type": lambda d: (d / "processor_config.json").write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=list(DAMAGE))
def test_an_incomplete_directory_is_one_sentence(copied: Path, damage: Callable[[Path], object]) -> None:
    damage(copied)

    with pytest.raises(ModelNotFound) as caught:
        load_model(str(copied))

    message = str(caught.value)
    assert message.startswith(f"directory {str(copied)!r} is not a complete saved model (")
    assert message.endswith("): save model and processor with save_pretrained")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError(), "ValueError"),
        (KeyError("name"), "KeyError: 'name'"),
        (ValueError("a field:\n    is wrong\nsee below"), "a field: is wrong"),
    ],
)
def test_the_reason_is_never_empty(copied: Path, error: Exception, reason: str) -> None:
    with pytest.raises(ModelNotFound) as caught, refuse_damaged(str(copied)):
        raise error

    assert f"is not a complete saved model ({reason}): " in str(caught.value)


def test_a_damaged_model_of_the_hub_is_not_said_to_be_missing() -> None:
    expected = r"^model 'a/b' is not a complete saved model \(KeyError: 'c'\): "
    with pytest.raises(ModelNotFound, match=expected), refuse_damaged("a/b"):
        raise KeyError("c")


def test_a_connection_that_breaks_is_no_damage() -> None:
    with pytest.raises(ModelNotFound, match="nor a hub id that can be reached"), refuse_damaged("a/b"):
        raise httpx.ReadError("connection reset")


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA"), RuntimeError("can't allocate memory"), ConfigError("ours")]
)
def test_a_full_memory_is_no_damage(copied: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, refuse_damaged(str(copied)):
        raise error

    assert caught.value is error


@pytest.mark.parametrize(
    ("name", "content"),
    [("model.safetensors", b""), ("model.safetensors.index.json", b"{}"), ("model.safetensors.index.json", b"{")],
)
def test_damaged_weights_are_one_sentence_where_they_are_read_one_by_one(
    copied: Path, name: str, content: bytes
) -> None:
    (copied / name).write_bytes(content)

    with pytest.raises(ModelNotFound, match="is not a complete saved model"):
        load_held(str(copied), language="en", trained="encoder-norm", precision="bfloat16")


def _more_layers(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"encoder_layers": config["encoder_layers"] + 1}))


QUIET_DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated weights": lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:999]),
    "missing tensors": _more_layers,
    "no tokenizer": lambda d: (d / "tokenizer.json").unlink(),
}


@pytest.mark.parametrize("damage", QUIET_DAMAGE.values(), ids=list(QUIET_DAMAGE))
def test_a_damaged_directory_is_one_sentence(copied: Path, damage: Callable[[Path], object]) -> None:
    damage(copied)

    with pytest.raises(ModelNotFound, match="is not a complete saved model"):
        load_model(str(copied))
