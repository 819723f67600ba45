"""The workload of cost benchmarks: a Whisper and a batch of five-second windows, the same for all methods."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from zo_common.lattice.trained import select
from zo_common.models.compute import autocast
from zo_common.models.whisper.frozen_prefix import FrozenPrefix
from zo_common.models.whisper.loss import WhisperLoss
from zo_common.models.whisper.objectives import WhisperBatch, whisper_labels, whisper_losses

MODELS = Path(__file__).parent.parent.parent / "models"
SPEECH_FRAMES = 500  # five seconds
SILENT_FRAMES = 30  # as `zo_common.speech.whisper` keeps behind the speech
SILENCE = -1.0
TAIL_TOKENS = 64
EPSILON = 1e-3
LEARNING_RATE = 2.4e-5  # ZO-ASR's 3e-6 for the sum over 8 directions, as a mean

# width, layers of encoder and of decoder, heads, mel bins, vocabulary (github.com/openai/whisper, model cards)
ARCHITECTURES = {
    "tiny": (384, 4, 6, 80, 51865),
    "base": (512, 6, 8, 80, 51865),
    "small": (768, 12, 12, 80, 51865),
    "large-v3": (1280, 32, 20, 128, 51866),
}


def random_whisper(architecture: str, device: str = "cpu", **changes: int) -> Any:
    """Return a Whisper of that shape, with `changes` to its configuration and seeded random float32 weights."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    width, layers, heads, bins, vocabulary = ARCHITECTURES[architecture]
    shape: dict[str, Any] = {
        "d_model": width,
        "encoder_layers": layers,
        "decoder_layers": layers,
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "encoder_ffn_dim": 4 * width,
        "decoder_ffn_dim": 4 * width,
        "num_mel_bins": bins,
        "vocab_size": vocabulary,
        "attn_implementation": "sdpa",
    }
    config = WhisperConfig(**shape | changes)
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = WhisperForConditionalGeneration(config)
    model.eval().requires_grad_(False)
    return model


def whisper(architecture: str, device: str = "cpu") -> Any:
    """Return `random_whisper`, or for "tiny.en" OpenAI's weights; all weights lie in memory of this process."""
    if architecture != "tiny.en":
        return random_whisper(architecture, device)
    from zo_common.models.load import load_model

    model = load_model(str(bundled())).model
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # not a mapped file
    return model.to(device)


def bundled() -> Path:
    """Return the directory of OpenAI's Whisper-tiny.en, converted at the first call."""
    if not (MODELS / "whisper-tiny.en" / "model.safetensors").is_file():
        from simulations.models.whisper_import import bundled_whisper

        return bundled_whisper(MODELS)
    return MODELS / "whisper-tiny.en"


def random_batch(model: Any, size: int = 8, frames: int = SPEECH_FRAMES) -> WhisperBatch:
    """Return seeded noise with a silent end and random labels of 10 to 20 tokens; values change no time."""
    generator = torch.Generator().manual_seed(1)
    config = model.config
    features = torch.full((size, config.num_mel_bins, frames + SILENT_FRAMES), SILENCE)
    features[..., :frames] = 0.4 * torch.randn(features[..., :frames].shape, generator=generator)
    lengths = [10 + index * 10 // max(size - 1, 1) for index in range(size)]
    words = min(50000, config.vocab_size - 1)
    texts = [torch.randint(words, (length,), generator=generator).tolist() for length in lengths]
    inputs, labels = whisper_labels([config.decoder_start_token_id, words], texts, config.eos_token_id)
    return WhisperBatch(features, inputs, labels).to(next(model.parameters()).device)


def device_loss(model: Any, batch: WhisperBatch, tensors: str, precision: str = "float32") -> WhisperLoss:
    """Return a step's loss as our devices compute it: anew for every batch, frozen stages once."""
    return WhisperLoss(model, batch, FrozenPrefix(model, select(model, tensors)), TAIL_TOKENS, precision)


def whole_loss(model: Any, batch: WhisperBatch, precision: str = "float32") -> Callable[[], torch.Tensor]:
    """Return the same per-example loss, whatever is trained; with gradients where weights ask for them."""
    device = batch.features.device

    def losses() -> torch.Tensor:
        with autocast(precision, device):
            return whisper_losses(model, batch, TAIL_TOKENS)

    return losses


def usable_device(name: str) -> str:
    """Return a device's name, if torch can use it here; else raise argparse's error in one sentence."""
    if name == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError("there is no CUDA device here: measure on a machine that has one, or use cpu")
    return name


def add_arguments(parser: argparse.ArgumentParser, repeats: int) -> None:
    """Add the options of all scripts of the comparison."""
    parser.add_argument("--device", type=usable_device, choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--architecture", choices=("tiny.en", *ARCHITECTURES), default="tiny.en")
    parser.add_argument("--repeats", type=int, default=repeats)
