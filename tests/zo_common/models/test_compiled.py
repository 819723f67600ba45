"""Compiled layers see the weights that the lattice moves in place."""

from __future__ import annotations

import pytest
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from zo_common.errors import ConfigError
from zo_common.lattice.state import LatticeState
from zo_common.models import compiled
from zo_common.models.compiled import compile_layers
from zo_common.models.whisper.objectives import WhisperBatch, whisper_labels, whisper_losses

SIZES = {
    "vocab_size": 60,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_mel_bins": 8,
    "max_source_positions": 40,
    "max_target_positions": 24,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 3,
}


@torch.inference_mode()
def test_losses_follow_every_move_of_the_weights() -> None:
    """The tracing half of torch.compile is real; its code generation, which needs a C++ compiler, is left out."""
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(WhisperConfig(**SIZES)).eval().requires_grad_(False)
    state = LatticeState(model, "all", threads=1)
    batches = [
        WhisperBatch(torch.randn(2, 8, frames), *whisper_labels([3, 4], [[10, 11, 12], [20]], 2)) for frames in (40, 60)
    ]
    before = [whisper_losses(model, batch, 4) for batch in batches]
    names = list(state.exponents)

    compile_layers(model, backend="eager")

    assert set(names) <= {n for n, _ in model.named_parameters(remove_duplicate=False)}
    for batch, plain in zip(batches, before, strict=True):
        torch.testing.assert_close(whisper_losses(model, batch, 4), plain)
    units = state.epsilon_units(0.05)
    state.shift([3], units)
    moved = whisper_losses(model, batches[0], 4)
    assert not torch.allclose(moved, before[0])
    reference = WhisperForConditionalGeneration(WhisperConfig(**SIZES)).eval()
    reference.load_state_dict(model.state_dict())
    torch.testing.assert_close(moved, whisper_losses(reference, batches[0], 4))
    state.shift([3], -units)
    torch.testing.assert_close(whisper_losses(model, batches[0], 4), before[0])


def test_without_a_compiler_it_is_refused_before_any_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    model = WhisperForConditionalGeneration(WhisperConfig(**SIZES))

    with pytest.raises(ConfigError, match=r"install g\+\+"):
        compile_layers(model)
