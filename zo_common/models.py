"""Load a base model from a hub id or a local directory, in float32, ready for the lattice."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from zo_common.errors import ModelNotFound, UnsupportedModel

SUPPORTED = ("WhisperForConditionalGeneration",)


def load_whisper(source: str) -> tuple[nn.Module, Any]:
    """A `WhisperForConditionalGeneration` in eval mode, float32, and its `WhisperProcessor`.

    Args:
        source: hub id (`openai/whisper-small`) or a directory made by `save_pretrained`, processor included.

    Raises:
        ModelNotFound: no such directory, and the hub does not have it or cannot be reached.
        UnsupportedModel: another architecture.
    """
    from transformers import AutoConfig, WhisperForConditionalGeneration, WhisperProcessor
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model: nn.Module
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ModelNotFound(_not_found(source, error)) from None
    if config.model_type != "whisper":
        raise UnsupportedModel(
            f"model {source!r} is a {config.model_type!r} model, supported are: {', '.join(SUPPORTED)}"
        )
    try:
        loaded: Any = WhisperForConditionalGeneration.from_pretrained(
            source, dtype=torch.float32, attn_implementation="sdpa", output_loading_info=True
        )
        model, report = loaded
        processor = WhisperProcessor.from_pretrained(source)
        _refuse_incomplete(report["missing_keys"], config.vocab_size, len(processor.tokenizer))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelNotFound(_not_found(source, error)) from None
    model.eval().requires_grad_(False)
    return model, processor


def _refuse_incomplete(missing: Iterable[str], vocabulary: int, tokens: int) -> None:
    """transformers only warns where it makes up weights or a tokenizer.

    Raises:
        ValueError: says what is missing.
    """
    names = sorted(missing)
    if names:
        raise ValueError(f"{len(names)} tensors are missing, such as {names[0]}")
    if tokens < vocabulary - 2000:  # checkpoints without timestamp tokens lack 1501
        raise ValueError(f"its tokenizer knows {tokens} tokens, the model {vocabulary}")


def _not_found(source: str, error: Exception) -> str:
    if Path(source).exists():
        first = str(error).strip().splitlines()[0]
        return (
            f"directory {source!r} is not a complete saved model ({first}): "
            "save model and processor with save_pretrained"
        )
    return (
        f"model {source!r} is neither a local directory nor a hub id that can be reached: check the name, "
        "or download it where there is a network and pass the directory"
    )
