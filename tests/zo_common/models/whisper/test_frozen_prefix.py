"""What no trained tensor touches is computed once, and the losses stay the same to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from transformers import WhisperConfig, WhisperForConditionalGeneration

from zo_common.estimator.settings import EstimatorConfig
from zo_common.estimator.step import zo_step
from zo_common.lattice.state import LatticeState
from zo_common.lattice.trained import select
from zo_common.models.whisper.frozen_prefix import FrozenPrefix
from zo_common.models.whisper.loss import WhisperLoss
from zo_common.models.whisper.objectives import WhisperBatch, whisper_labels, whisper_losses

LAYERS = 3


@pytest.fixture
def model() -> nn.Module:
    """A random Whisper of three encoder layers."""
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=60,
        d_model=16,
        encoder_layers=LAYERS,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_mel_bins=8,
        max_source_positions=40,
        max_target_positions=24,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
    )
    return WhisperForConditionalGeneration(config).eval().requires_grad_(False)


@pytest.fixture
def batch() -> WhisperBatch:
    features = torch.randn(3, 8, 40, generator=torch.Generator().manual_seed(1))
    return WhisperBatch(features, *whisper_labels([3, 4], [[10, 11, 12], [20], [30, 31]], 2))


class Calls:
    """How often every module of the encoder ran."""

    def __init__(self, encoder: Any) -> None:
        self.counts = dict.fromkeys(["conv1", "conv2", *map(str, range(LAYERS)), "norm"], 0)
        # the first layer merges the tail: its parts run, not the layer as a whole
        modules = [encoder.conv1, encoder.conv2, *(layer.self_attn for layer in encoder.layers), encoder.layer_norm]
        self._hooks = [
            module.register_forward_hook(lambda *_, name=name: self._count(name))
            for name, module in zip(self.counts, modules, strict=True)
        ]

    def _count(self, name: str) -> None:
        self.counts[name] += 1

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()


@pytest.fixture
def calls(model: Any) -> Iterator[Calls]:
    counted = Calls(model.model.encoder)
    yield counted
    counted.remove()


PATTERNS = [
    ("all", 0),
    ("*encoder.conv2.bias", 0),
    ("*encoder.layers.0.fc1.*", 1),
    ("*encoder.layers.0.self_attn.out_proj.bias,*encoder.layers.1.self_attn.q_proj.*", 1),
    ("*encoder.layers.0.self_attn.q_proj.bias,*encoder.layers.0.fc2.bias", 1),
    ("*encoder.layers.1.*fc2.bias,*encoder.layers.1.*out_proj.bias", 2),
    ("encoder-ffn,!*layers.0.*", 2),
    ("*encoder.layers.2.*,*decoder.layer_norm.*", LAYERS),
    ("*encoder.layer_norm.*", LAYERS + 1),
    ("decoder", LAYERS + 2),
]


@pytest.mark.parametrize(("pattern", "stages"), PATTERNS)
def test_the_first_stage_with_a_trained_tensor_ends_the_prefix(model: nn.Module, pattern: str, stages: int) -> None:
    assert FrozenPrefix(model, select(model, pattern)).stages == stages


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("pattern", [pattern for pattern, _ in PATTERNS])
@torch.inference_mode()
def test_losses_are_those_without_a_prefix_under_every_perturbation(
    model: nn.Module, batch: WhisperBatch, pattern: str, precision: str
) -> None:
    state = LatticeState(model, pattern, threads=1)
    kept = WhisperLoss(model, batch, FrozenPrefix(model, state.exponents), 4, precision)
    units = state.epsilon_units(0.05)
    seen = set()
    for seed in (1, 2, 3):
        state.shift([seed], units)
        fresh = WhisperLoss(model, batch, FrozenPrefix(model, ["model.encoder.conv1.weight"]), 4, precision)
        assert torch.equal(kept(), fresh())
        if precision == "float32":
            assert torch.equal(kept(), whisper_losses(model, batch, 4))
        seen.add(tuple(kept().tolist()))
    assert len(seen) == 3  # the perturbations reach the loss


@pytest.mark.parametrize(("pattern", "stages"), PATTERNS)
def test_a_step_computes_the_prefix_once(
    model: Any, batch: WhisperBatch, calls: Calls, pattern: str, stages: int
) -> None:
    state = LatticeState(model, pattern, threads=1)
    loss = WhisperLoss(model, batch, FrozenPrefix(model, state.exponents), 4)

    zo_step(state, loss, seed=5, step=0, config=EstimatorConfig("two-sided", 4, 1e-2), learning_rate=0.0)

    order = [["conv1", "conv2"], ["0"], ["1"], ["2"], ["norm"]]
    behind = ("out_proj", "final_layer_norm", "fc1", "fc2")  # a layer's attention comes before them
    first = [name for name in state.exponents if f"encoder.layers.{stages - 1}." in name]
    once = stages + (0 < stages <= LAYERS and all(any(part in name for part in behind) for name in first))
    for stage, names in enumerate(order):
        for name in names:
            assert calls.counts[name] == (1 if stage < once else 8), (name, calls.counts)
