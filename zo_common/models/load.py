"""Load a base model from a hub id or a local directory, in float32, ready for the lattice."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import nn

from zo_common.errors import ModelNotFound, UnsupportedModel
from zo_common.models.quiet import quiet_transformers
from zo_common.models.whisper.generation_defaults import complete_generation_config
from zo_common.models.whisper.silent_tail import mark_sinks

WHISPER = "WhisperForConditionalGeneration"
CTC_CLASSES = {"wav2vec2": "Wav2Vec2ForCTC", "hubert": "HubertForCTC", "wavlm": "WavLMForCTC"}


class LoadedModel(NamedTuple):
    """A base model in eval mode, float32, without gradients, and its processor."""

    model: nn.Module
    processor: Any


def load_model(source: str) -> LoadedModel:
    """A Whisper model, or a Wav2Vec2, HuBERT or WavLM model with a CTC head.

    Nothing in it is random: eval mode has no dropout, no layer drop and no masking of the spectrum.

    Args:
        source: hub id (`facebook/wav2vec2-base-960h`) or a directory made by `save_pretrained`, processor included.

    Raises:
        ModelNotFound: no such directory or an incomplete one, or the hub does not have it or cannot be reached.
        UnsupportedModel: another architecture, or one without a CTC head.
    """
    config = model_config(source)
    if config.model_type == "whisper":
        return LoadedModel(*_load_whisper(source, config))
    if config.model_type not in CTC_CLASSES:
        raise UnsupportedModel(_unsupported(source, config, [WHISPER, *CTC_CLASSES.values()]))
    return LoadedModel(*_load_ctc(source, config))


def load_whisper(source: str) -> tuple[nn.Module, Any]:
    """A `WhisperForConditionalGeneration` in eval mode, float32, and its `WhisperProcessor`.

    Args:
        source: hub id (`openai/whisper-small`) or a directory made by `save_pretrained`, processor included.

    Raises:
        ModelNotFound: no such directory, and the hub does not have it or cannot be reached.
        UnsupportedModel: another architecture.
    """
    config = model_config(source)
    if config.model_type != "whisper":
        raise UnsupportedModel(_unsupported(source, config, [WHISPER]))
    return _load_whisper(source, config)


def model_config(source: str) -> Any:
    """The configuration of a source, its weights unread. Raises ModelNotFound as `load_model`."""
    from transformers import AutoConfig

    quiet_transformers(warnings=False)
    try:
        return AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ModelNotFound(_not_found(source, error)) from None


def _unsupported(source: str, config: Any, supported: list[str]) -> str:
    return f"model {source!r} is a {config.model_type!r} model, supported are: {', '.join(supported)}"


def _load_whisper(source: str, config: Any) -> tuple[nn.Module, Any]:
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    model: nn.Module
    try:
        loaded: Any = WhisperForConditionalGeneration.from_pretrained(
            source, dtype=torch.float32, attn_implementation="sdpa", output_loading_info=True
        )
        model, report = loaded
        processor = WhisperProcessor.from_pretrained(source)
        _refuse_incomplete(report["missing_keys"], config.vocab_size, len(processor.tokenizer))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelNotFound(_not_found(source, error)) from None
    complete_generation_config(model, processor.tokenizer)
    model.eval().requires_grad_(False)
    mark_sinks(model)
    return model, processor


def _load_ctc(source: str, config: Any) -> tuple[nn.Module, Any]:
    import transformers

    if not any(name.endswith("ForCTC") for name in config.architectures or ["ForCTC"]):
        raise UnsupportedModel(_headless(source))
    model: nn.Module
    try:
        loaded: Any = getattr(transformers, CTC_CLASSES[config.model_type]).from_pretrained(
            source, dtype=torch.float32, output_loading_info=True
        )
        model, report = loaded
        missing = set(report["missing_keys"])
        if any(name.startswith("lm_head.") for name in missing):
            raise UnsupportedModel(_headless(source))
        # pretraining's mask embedding is not used, often not stored, and would be made up anew at each loading
        masks = {name for name in missing if name.endswith(".masked_spec_embed")}
        for name in masks:
            model.get_parameter(name).data.zero_()
        processor = transformers.Wav2Vec2Processor.from_pretrained(source)
        _refuse_incomplete(missing - masks, 0, 0)
        _refuse_vocabulary(config, processor.tokenizer)
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise ModelNotFound(_not_found(source, error)) from None
    model.eval().requires_grad_(False)
    return model, processor


def _headless(source: str) -> str:
    return (
        f"model {source!r} has no CTC head: pass a checkpoint that was fine-tuned for recognition, such as "
        "facebook/wav2vec2-base-960h"
    )


def _refuse_vocabulary(config: Any, tokenizer: Any) -> None:
    """Every class of the head must be a token, and the blank the tokenizer's padding.

    Raises:
        ValueError: says what does not fit.
    """
    known = set(tokenizer.get_vocab().values())
    unknown = [index for index in range(config.vocab_size) if index not in known]
    if unknown:
        raise ValueError(f"its tokenizer does not know {len(unknown)} of the model's {config.vocab_size} classes")
    if tokenizer.pad_token_id != config.pad_token_id:
        raise ValueError(f"its tokenizer's blank is {tokenizer.pad_token_id}, the model's {config.pad_token_id}")


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
