"""Frozen weights change their type, and nothing else changes: names, ties, fingerprint, lattice, and the way back."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from zo_common.errors import ConfigError, ModelNotFound, PatternError, UnsupportedModel
from zo_common.lattice.fingerprint import fingerprint
from zo_common.lattice.state import LatticeState
from zo_common.lattice.trained import unique_parameters
from zo_common.models.frozen import hold as holding
from zo_common.models.frozen.hold import exact_weights, hold
from zo_common.models.frozen.load import HeldModel, load_held
from zo_common.models.load import load_model
from zo_common.models.whisper.objectives import WhisperBatch, whisper_losses
from zo_common.models.whisper.silent_tail import sinks_of
from zo_common.speech.model_kinds import speech_model

TRAINED = "encoder-residual-bias"
TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.bfloat16}


def _held(source: Path, precision: str, trained: str = TRAINED) -> HeldModel:
    if precision == "int8":
        pytest.importorskip("torchao")
    return load_held(str(source), language="en", trained=trained, precision=precision)


def _batch(model: Any) -> WhisperBatch:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, model.config.num_mel_bins, 200, generator=generator)
    tokens = torch.randint(0, model.config.vocab_size, (2, 6), generator=generator)
    return WhisperBatch(features, tokens, tokens)


@torch.inference_mode()
def _losses(model: Any) -> torch.Tensor:
    return whisper_losses(model, _batch(model))


@pytest.mark.parametrize("precision", TYPES)
def test_a_whisper_is_the_same_model_in_fewer_bytes(tiny_whisper: Path, precision: str) -> None:
    base: Any = load_model(str(tiny_whisper)).model
    held = _held(tiny_whisper, precision)
    model: Any = held.loaded.model

    assert held.fingerprint == fingerprint(base)
    assert list(unique_parameters(model)) == list(unique_parameters(base))
    assert model.proj_out.weight is model.model.decoder.embed_tokens.weight
    assert model.model.decoder.layers[0].fc1.weight.dtype == TYPES[precision]
    assert sinks_of(model.model.encoder) == sinks_of(base.model.encoder)
    assert model.generation_config.to_dict() == base.generation_config.to_dict()
    with exact_weights(model):
        assert torch.equal(_losses(model), _losses(base))
    assert not torch.equal(_losses(model), _losses(base))
    torch.testing.assert_close(_losses(model), _losses(base), rtol=0.02, atol=0)
    assert LatticeState(model, TRAINED).checksum() == LatticeState(base, TRAINED).checksum()


def test_the_type_of_trained_matrices_stays(tiny_whisper: Path) -> None:
    model: Any = _held(tiny_whisper, "bfloat16", "*encoder.layers.0.fc1.*").loaded.model

    layers = model.model.encoder.layers
    assert type(layers[0].fc1) is nn.Linear
    assert layers[0].fc1.weight.dtype == torch.float32
    assert layers[1].fc1.weight.dtype == torch.bfloat16


def test_no_weight_is_cast_in_a_forward_pass(tiny_whisper: Path) -> None:
    model: Any = _held(tiny_whisper, "bfloat16").loaded.model
    seen: list[tuple[int, ...]] = []

    class Casts(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten._to_copy.default:
                seen.append(tuple(args[0].shape))
            return func(*args, **(kwargs or {}))

    batch = _batch(model)
    with torch.no_grad(), Casts(), torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        whisper_losses(model, batch)

    assert seen
    matrices = {tuple(p.shape) for p in model.parameters() if p.dtype == torch.bfloat16}
    assert not matrices & set(seen)


def test_float32_is_the_base_again(tiny_whisper: Path) -> None:
    held = _held(tiny_whisper, "bfloat16")
    base: Any = load_model(str(tiny_whisper)).model
    state = LatticeState(held.loaded.model, TRAINED)

    hold(held.loaded.model, list(state.exponents), "float16", held.originals)
    hold(held.loaded.model, list(state.exponents), "float32", held.originals)

    assert fingerprint(held.loaded.model) == held.fingerprint
    assert [type(m) for m in held.loaded.model.modules()] == [type(m) for m in base.modules()]


def test_another_kind_of_model_is_converted_after_loading(tiny_wav2vec2: Path) -> None:
    held = _held(tiny_wav2vec2, "bfloat16", "norms")
    speech, base = speech_model(held.loaded), speech_model(load_model(str(tiny_wav2vec2)))
    wave = torch.randn(8000, generator=torch.Generator().manual_seed(0)).numpy()

    assert held.fingerprint == fingerprint(base.model)
    assert speech.model.lm_head.weight.dtype == torch.bfloat16
    example = speech.reader().of_wave(wave)
    assert speech.transcribe([example])[0].text == base.transcribe([example])[0].text


class TestErrors:
    def test_int8_without_its_package(self, tiny_whisper: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        holding._torchao.cache_clear()
        monkeypatch.setitem(__import__("sys").modules, "torchao", None)

        with pytest.raises(ConfigError, match=r"needs the package torchao.*: pip install 'federated-zo-asr\[int8\]'"):
            load_held(str(tiny_whisper), language="en", trained=TRAINED, precision="int8")

    def test_a_pattern_that_matches_nothing(self, tiny_whisper: Path) -> None:
        with pytest.raises(PatternError, match="matches none"):
            _held(tiny_whisper, "bfloat16", "*nothing*")

    @pytest.mark.parametrize("damage", ["missing", "infinite", "files"])
    def test_a_damaged_model(self, tiny_whisper: Path, tmp_path: Path, damage: str) -> None:
        folder = shutil.copytree(tiny_whisper, tmp_path / "model")
        file = folder / "model.safetensors"
        tensors = load_file(file)
        name = "model.encoder.layers.1.fc1.weight"
        if damage == "missing":
            del tensors[name]
        tensors.get(name, torch.zeros(1)).view(-1)[0] = torch.inf
        save_file(tensors, file, {"format": "pt"})
        if damage == "files":
            file.rename(folder / "other.safetensors")

        said = {"missing": f"'{name}' is missing", "infinite": "NaN|not finite", "files": "has no model.safetensors"}
        with pytest.raises(UnsupportedModel, match=said[damage]):
            _held(folder, "bfloat16")

    def test_a_model_whose_files_are_gone(self, tiny_whisper: Path, tmp_path: Path) -> None:
        folder = shutil.copytree(tiny_whisper, tmp_path / "model")
        held = _held(folder, "bfloat16")
        shutil.rmtree(folder)

        with pytest.raises(ModelNotFound, match="cannot be read any more"):
            hold(held.loaded.model, [], "float32", held.originals)
