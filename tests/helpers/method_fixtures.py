"""Fixtures of the method's tests: the expected values of exact-ZO v1 and small modules to move."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from simulations.models.tiny import shorten_tokenizer
from zo_common.ledger.ledger import Ledger, LedgerHeader, TensorEntry
from zo_common.ledger.record import Contribution, Record
from zo_common.models.quiet import transformers_quiet

GOLDEN = Path(__file__).parent.parent / "golden" / "exact_zo_v1.json"

ModuleFactory = Callable[..., nn.Module]
WeightReader = Callable[[nn.Module], dict[str, bytes]]
HeaderFactory = Callable[..., LedgerHeader]
RecordFactory = Callable[[int], Record]
LedgerFactory = Callable[..., Ledger]


@pytest.fixture(scope="session")
def golden() -> dict[str, Any]:
    """Expected values of exact-ZO v1."""
    values: dict[str, Any] = json.loads(GOLDEN.read_text())
    return values


@pytest.fixture(scope="session")
def module_of() -> ModuleFactory:
    """Builds a module with parameters of the given dotted names and values."""

    def build(**tensors: torch.Tensor) -> nn.Module:
        root = nn.Module()
        for name, value in tensors.items():
            owner = root
            *path, leaf = name.split(".")
            for part in path:
                if not hasattr(owner, part):
                    owner.add_module(part, nn.Module())
                owner = getattr(owner, part)
            owner.register_parameter(leaf, nn.Parameter(value.clone()))
        return root

    return build


@pytest.fixture(scope="session")
def small_model() -> ModuleFactory:
    """Builds the same small network for the same seed: odd sizes, weights of different magnitude."""

    def build(seed: int = 0, inputs: int = 3, hidden: int = 11, outputs: int = 2) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        model = nn.Sequential(
            nn.Linear(inputs, hidden), nn.Tanh(), nn.LayerNorm(hidden), nn.Linear(hidden, outputs, bias=False)
        )
        for index, parameter in enumerate(model.parameters()):
            scale = (0.5, 0.1, 1.0, 0.05, 0.4)[index]
            parameter.data = scale * torch.randn(parameter.shape, generator=generator)
        return model

    return build


@pytest.fixture(scope="session")
def weight_bytes() -> WeightReader:
    """Reads all parameters as bytes: equal dictionaries mean equal bits."""

    def read(model: nn.Module) -> dict[str, bytes]:
        return {name: np.ascontiguousarray(p.detach().numpy()).tobytes() for name, p in model.named_parameters()}

    return read


@pytest.fixture(scope="session")
def header_of() -> HeaderFactory:
    """Builds a ledger header of two tensors; arguments replace its fields."""

    def build(**fields: Any) -> LedgerHeader:
        values: dict[str, Any] = {
            "fingerprint": "0123456789abcdef" * 4,
            "base_checksum": 2**64 - 3,
            "model": "openai/whisper-tiny.en",
            "pattern": "encoder-ffn,!*bias",
            "scale": "unit",
            "epsilon": 1e-3,
            "estimator": "two-sided",
            "run_seed": 2**63 - 1,
            "created": "2026-01-02T03:04:05Z",
            "tensors": (TensorEntry("a.weight", (3, 11), -24, 0), TensorEntry("b", (), -26, -3)),
            "settings": {"learning-rate": 0.25, "note": "Grüße"},
        }
        return LedgerHeader(**(values | fields))

    return build


@pytest.fixture(scope="session")
def record_of() -> RecordFactory:
    """Builds round n of a ledger: one client of 2·3 coefficients, another of 1·1."""

    def build(server_round: int) -> Record:
        rng = np.random.default_rng(server_round)
        first = Contribution(int(rng.integers(2**63)), 2**64 - 1, rng.normal(size=(2, 3)).astype(np.float32) * 1e-3)
        second = Contribution(2**64 - server_round, server_round, np.array([[-0.5]], np.float32))
        return Record(server_round, int(rng.integers(2**63)), (first, second))

    return build


@pytest.fixture(scope="session")
def ledger_of(header_of: HeaderFactory, record_of: RecordFactory) -> LedgerFactory:
    """Builds a ledger of so many rounds."""

    def build(rounds: int, **fields: Any) -> Ledger:
        return Ledger(header_of(**fields), tuple(record_of(n) for n in range(1, rounds + 1)))

    return build


@pytest.fixture(scope="session")
def tiny_whisper_dir(whisper_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A multilingual Whisper of one layer and 16 channels, random weights, with a processor of few text tokens."""
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration, WhisperProcessor

    directory = tmp_path_factory.mktemp("tiny-whisper")
    WhisperProcessor.from_pretrained(whisper_dir).save_pretrained(directory)
    shorten_tokenizer(directory, languages=True)
    processor = WhisperProcessor.from_pretrained(directory)
    ids = processor.tokenizer.convert_tokens_to_ids
    end, start = ids("<|endoftext|>"), ids("<|startoftranscript|>")
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=len(processor.tokenizer),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=start,
    )
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        is_multilingual=True,
        lang_to_id={"<|en|>": ids("<|en|>"), "<|de|>": ids("<|de|>")},
        task_to_id={"transcribe": ids("<|transcribe|>"), "translate": ids("<|translate|>")},
        no_timestamps_token_id=ids("<|notimestamps|>"),
        decoder_start_token_id=start,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        max_length=448,
    )
    with transformers_quiet():
        model.save_pretrained(directory)
    return directory
