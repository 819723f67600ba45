"""Load a base model from a hub id or a local directory, in float32, ready for the lattice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
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
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ModelNotFound(_not_found(source, error)) from None
    if config.model_type != "whisper":
        raise UnsupportedModel(
            f"model {source!r} is a {config.model_type!r} model, supported are: {', '.join(SUPPORTED)}"
        )
    try:
        model: nn.Module = WhisperForConditionalGeneration.from_pretrained(
            source, dtype=torch.float32, attn_implementation="sdpa"
        )
        processor = WhisperProcessor.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ModelNotFound(_not_found(source, error)) from None
    model.eval().requires_grad_(False)
    return model, processor


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
