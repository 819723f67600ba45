"""CTC models load ready for the lattice, or fail in one sentence that says what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_ctc import BLANK, CHARACTERS, KINDS, noise_waves, tiny_ctc, write_tiny_ctc
from transformers import BertConfig, Wav2Vec2ForPreTraining, Wav2Vec2Model

from zo_common.errors import ModelNotFound, UnsupportedModel
from zo_common.lattice.fingerprint import fingerprint
from zo_common.models.ctc.loss import ctc_batch
from zo_common.models.load import load_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved Wav2Vec2 with a CTC head."""
    return write_tiny_ctc(tmp_path_factory.mktemp("ctc") / "model")


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    """A saved model that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_is_frozen_float32_and_in_eval_mode(tmp_path: Path, kind: str) -> None:
    model, processor = load_model(str(write_tiny_ctc(tmp_path, kind, "layer")))

    assert type(model).__name__.endswith("ForCTC")
    assert not any(module.training for module in model.modules())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in model.parameters())
    assert len(processor.tokenizer) == model.config.vocab_size == len(CHARACTERS)
    assert processor.tokenizer.pad_token_id == model.config.pad_token_id == BLANK
    assert processor.feature_extractor.sampling_rate == 16000


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_nothing_is_random(tmp_path: Path, kind: str) -> None:
    """Dropout, layer drop and masking are all set high, and none of them acts."""
    directory = write_tiny_ctc(tmp_path, kind)
    config = json.loads((directory / "config.json").read_text())
    chances = {key: 0.9 for key in config if "dropout" in key or key == "layerdrop" or key.startswith("mask_")}
    chances = {key: value for key, value in chances.items() if isinstance(config[key], float)}
    assert {"layerdrop", "mask_time_prob", "hidden_dropout", "final_dropout"} <= set(chances)
    (directory / "config.json").write_text(json.dumps(config | chances | {"apply_spec_augment": True}))
    model, processor = load_model(str(directory))
    values = ctc_batch(processor.feature_extractor, noise_waves(16000)).values

    first, second = model(values).logits, model(values).logits

    assert model.config.layerdrop == 0.9
    assert torch.equal(first, second)
    torch.testing.assert_close(first, tiny_ctc(kind)(values).logits, rtol=1e-5, atol=1e-5)


def test_whisper_comes_with_its_processor(tiny_whisper_dir: Path) -> None:
    model, processor = load_model(str(tiny_whisper_dir))

    assert fingerprint(model) == fingerprint(load_model(str(tiny_whisper_dir)).model)
    assert processor.feature_extractor.feature_size == model.config.num_mel_bins


def test_a_mask_embedding_that_is_not_stored_is_the_same_every_time(copied: Path) -> None:
    """Published checkpoints lack it, and transformers would make it up anew."""
    weights = load_file(copied / "model.safetensors")
    del weights["wav2vec2.masked_spec_embed"]
    save_file(weights, copied / "model.safetensors", {"format": "pt"})

    first, second = (load_model(str(copied)).model for _ in range(2))

    assert not first.get_parameter("wav2vec2.masked_spec_embed").any()
    assert fingerprint(first) == fingerprint(second)


def test_a_model_without_a_head_is_refused_before_its_weights_are_read(copied: Path) -> None:
    config = tiny_ctc().config
    Wav2Vec2ForPreTraining(config).save_pretrained(copied)
    (copied / "model.safetensors").unlink()

    with pytest.raises(UnsupportedModel, match="has no CTC head: pass a checkpoint that was fine-tuned"):
        load_model(str(copied))


def test_a_head_that_would_be_made_up_is_refused(copied: Path) -> None:
    Wav2Vec2Model(tiny_ctc().config).save_pretrained(copied)
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"architectures": None}))

    with pytest.raises(UnsupportedModel, match="has no CTC head"):
        load_model(str(copied))


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    BertConfig().save_pretrained(tmp_path)

    with pytest.raises(UnsupportedModel) as caught:
        load_model(str(tmp_path))

    message = str(caught.value)
    assert message.startswith(f"model {str(tmp_path)!r} is a 'bert' model, supported are: WhisperForConditionalGen")
    assert all(name in message for name in ("HubertForCTC", "ParakeetForCTC", "WavLMForCTC"))


@pytest.mark.parametrize("source", ["facebook/wav2vec2-of-nobody", "/no/such/directory"])
def test_neither_a_directory_nor_a_reachable_id(source: str) -> None:
    with pytest.raises(ModelNotFound, match="is neither a local directory nor a hub id that can be reached"):
        load_model(source)


def _rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _drop_character(directory: Path) -> None:
    vocabulary = json.loads((directory / "vocab.json").read_text())
    del vocabulary["W"]
    (directory / "vocab.json").write_text(json.dumps(vocabulary))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no vocabulary": (lambda d: (d / "vocab.json").unlink(), ""),
    "broken vocabulary": (lambda d: (d / "vocab.json").write_text("{"), ""),
    "a character is missing": (_drop_character, "does not know 1 of the model's 25 classes"),
    "another blank": (lambda d: _rewrite(d / "config.json", pad_token_id=3), "blank is 0, the model's 3"),
    "no processor": (lambda d: (d / "processor_config.json").unlink(), ""),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), ""),
    "half the weights": (lambda d: (d / "model.safetensors").write_bytes(b"x" * 99), ""),
    "missing tensors": (lambda d: _rewrite(d / "config.json", num_hidden_layers=3), "tensors are missing, such as"),
    "another width": (lambda d: _rewrite(d / "config.json", vocab_size=30), ""),
    "broken config": (lambda d: (d / "config.json").write_text("{"), ""),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGE.values(), ids=list(DAMAGE))
def test_an_incomplete_directory_is_one_sentence(copied: Path, damage: Callable[[Path], object], reason: str) -> None:
    damage(copied)

    with pytest.raises(ModelNotFound) as caught:
        load_model(str(copied))

    message = str(caught.value)
    assert message.startswith(f"directory {str(copied)!r} is not a complete saved model (")
    assert reason in message
    assert message.endswith("): save model and processor with save_pretrained")
    assert "\n" not in message
