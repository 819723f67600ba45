"""Load a base model from a hub id or a local directory, in float32, ready for the lattice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from zo_common.errors import UnsupportedModel
from zo_common.models.ctc.language import use_language
from zo_common.models.ctc.loss import blank_of
from zo_common.models.foreign import refuse_damaged, refuse_foreign, refuse_non_finite
from zo_common.models.hub import from_hub_or_cache
from zo_common.models.whisper.generation_defaults import complete_generation_config
from zo_common.models.whisper.silent_tail import mark_sinks

WHISPER = "WhisperForConditionalGeneration"
# model types that transformers registers for speech to text, as far as their labels are known to be a text's tokens
SEQ2SEQ = {
    "moonshine": "MoonshineForConditionalGeneration",
    "moonshine_streaming": "MoonshineStreamingForConditionalGeneration",
    "speech_to_text": "Speech2TextForConditionalGeneration",
    "speech-encoder-decoder": "SpeechEncoderDecoderModel",
    "canary": "CanaryForConditionalGeneration",
}
CAUSAL = {"qwen3_asr": "Qwen3ASRForConditionalGeneration", "omniasr": "OmniASRForConditionalGeneration"}


class LoadedModel(NamedTuple):
    """A base model in eval mode, float32, without gradients, and its processor."""

    model: nn.Module
    processor: Any


@from_hub_or_cache
def load_model(source: str, *, language: str = "") -> LoadedModel:
    """Return a Whisper model, another that writes tokens (`SEQ2SEQ`, `CAUSAL`), or one of any class registered for CTC.

    Classes of other packages count, once registered: `AutoConfig.register(...)`, `AutoModelForCTC.register(...)`.
    Nothing in it is random: eval mode has no dropout, no layer drop and no masking of the spectrum.

    Args:
        source: hub id (`facebook/wav2vec2-base-960h`) or a directory made by `save_pretrained`, processor included.
        language: of the speech, for models with an adapter for each (MMS); "" keeps the checkpoint's own.

    Raises:
        ModelNotFound: no such directory or an incomplete one, or the hub does not have it or cannot be reached.
        UnsupportedModel: another architecture, one without a CTC head, another program's files, or weights that are
            not finite.
        ConfigError: the model has adapters, and none for this language.
    """
    config = model_config(source)
    if config.model_type == "whisper":
        return LoadedModel(*_load_whisper(source, config))
    if config.model_type in SEQ2SEQ | CAUSAL:
        return LoadedModel(*_load_tokens(source, config))
    if not _registered_for_ctc(config):
        supported = [WHISPER, *SEQ2SEQ.values(), *CAUSAL.values(), *ctc_classes().values()]
        raise UnsupportedModel(_unsupported(source, config, supported))
    return LoadedModel(*_load_ctc(source, config, language))


def ctc_classes() -> dict[str, str]:
    """Return model types that transformers registers for CTC, with the names of their classes."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CTC_MAPPING_NAMES

    return dict(MODEL_FOR_CTC_MAPPING_NAMES)


def _registered_for_ctc(config: Any) -> bool:
    """Return whether transformers knows a CTC class for this configuration, its own or a registered one."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CTC_MAPPING

    return type(config) in MODEL_FOR_CTC_MAPPING


@from_hub_or_cache
def model_config(source: str) -> Any:
    """Return the configuration of a source, its weights unread; raises as `load_model` does."""
    from transformers import AutoConfig

    refuse_foreign(source)
    with refuse_damaged(source):
        return AutoConfig.from_pretrained(source)


def _unsupported(source: str, config: Any, supported: list[str]) -> str:
    return f"model {source!r} is a {config.model_type!r} model, supported are: {', '.join(supported)}"


def _load_whisper(source: str, config: Any) -> tuple[nn.Module, Any]:
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    model: nn.Module
    with _loading(source, config):
        loaded: Any = WhisperForConditionalGeneration.from_pretrained(
            source, dtype=torch.float32, attn_implementation="sdpa", output_loading_info=True
        )
        model, report = loaded
        processor = WhisperProcessor.from_pretrained(source)
        _refuse_incomplete(report["missing_keys"], config.vocab_size, len(processor.tokenizer))
    complete_generation_config(_ready(source, model), processor.tokenizer)
    mark_sinks(model)
    return model, processor


def empty_whisper(source: str, config: Any) -> nn.Module:
    """Return a Whisper without weights: its parameters, tied ones too, are on the meta device.

    Raises:
        ModelNotFound: the configuration cannot be used.
    """
    from transformers import GenerationConfig, WhisperForConditionalGeneration

    with _loading(source, config):
        config._attn_implementation = "sdpa"
        with torch.device("meta"):
            model: Any = WhisperForConditionalGeneration(config)
        model.tie_weights()
        try:
            model.generation_config = GenerationConfig.from_pretrained(source)
        except OSError:  # older checkpoints have none
            model.generation_config = GenerationConfig.from_model_config(config)
    whisper: nn.Module = model
    return whisper


def ready_whisper(source: str, model: nn.Module, config: Any) -> tuple[nn.Module, Any]:
    """Return the model of `empty_whisper` with its weights, as `load_model` loads one, and its processor.

    Raises:
        ModelNotFound: its processor is missing or incomplete.
    """
    from transformers import WhisperProcessor

    with _loading(source, config):
        processor = WhisperProcessor.from_pretrained(source)
        _refuse_incomplete((), config.vocab_size, len(processor.tokenizer))
    complete_generation_config(model.eval().requires_grad_(False), processor.tokenizer)
    mark_sinks(model)
    return model, processor


def _load_ctc(source: str, config: Any, language: str) -> tuple[nn.Module, Any]:
    from transformers import Wav2Vec2Processor
    from transformers.models.auto.modeling_auto import MODEL_FOR_CTC_MAPPING
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    classes: Any = MODEL_FOR_CTC_MAPPING
    registered = classes[type(config)].__name__  # a class of another package may have any name
    if not any(name.endswith("ForCTC") or name == registered for name in config.architectures or [registered]):
        raise UnsupportedModel(_headless(source))
    processors: Any = PROCESSOR_MAPPING
    # by its class: AutoProcessor takes the one that a checkpoint names, which may want a language model
    reads = processors.get(type(config), Wav2Vec2Processor)
    model: nn.Module
    with _loading(source, config):
        loaded: Any = classes[type(config)].from_pretrained(source, dtype=torch.float32, output_loading_info=True)
        model, report = loaded
        missing = set(report["missing_keys"])
        if any(name.startswith(("lm_head.", "ctc_head.")) for name in missing):
            raise UnsupportedModel(_headless(source))
        processor = reads.from_pretrained(source)
        _refuse_incomplete(_mended(model, missing), 0, 0)
        use_language(source, model, processor.tokenizer, language)
        _refuse_vocabulary(model, processor.tokenizer)
    return _ready(source, model), processor


def _load_tokens(source: str, config: Any) -> tuple[nn.Module, Any]:
    import transformers

    model: nn.Module
    with _loading(source, config):
        loaded: Any = getattr(transformers, (SEQ2SEQ | CAUSAL)[config.model_type]).from_pretrained(
            source, dtype=torch.float32, output_loading_info=True
        )
        model, report = loaded
        processor = _token_processor(source, config)
        _refuse_incomplete(_mended(model, report["missing_keys"]), 0, 0)
    return _ready(source, model), processor


@contextmanager
def _loading(source: str, config: Any) -> Iterator[None]:
    """Turn errors of transformers on missing packages and files into errors of ours."""
    try:
        with refuse_damaged(source):
            yield
    except ImportError as error:
        raise UnsupportedModel(_needs_package(source, config, error)) from None


def _ready(source: str, model: nn.Module) -> nn.Module:
    """Return the model in eval mode, without gradients; raises UnsupportedModel where weights are no numbers."""
    refuse_non_finite(source, model)
    return model.eval().requires_grad_(False)


def _token_processor(source: str, config: Any) -> Any:
    """Return a processor with extractor and tokenizer; the classes that join any two models have none of their own."""
    import transformers

    hf: Any = transformers
    if config.model_type != "speech-encoder-decoder":
        return hf.AutoProcessor.from_pretrained(source)
    extractor = hf.AutoFeatureExtractor.from_pretrained(source)
    return hf.Wav2Vec2Processor(extractor, hf.AutoTokenizer.from_pretrained(source))


def _mended(model: nn.Module, missing: Iterable[str]) -> set[str]:
    """Return what is missing besides pretraining's mask embeddings, which are set to zero.

    They are not used, often not stored, and would be made up anew at each loading.
    """
    masks = {name for name in missing if name.endswith("masked_spec_embed")}
    for name in masks:
        model.get_parameter(name).data.zero_()
    return set(missing) - masks


def _needs_package(source: str, config: Any, error: ImportError) -> str:
    known = ("torchaudio", "sentencepiece", "phonemizer", "mistral_common", "librosa")
    name = next((name for name in known if name in str(error)), str(error.name))
    return (
        f"model {source!r} is a {config.model_type!r} model, whose processor needs the package {name}, which is not "
        f"installed: pip install {name}"
    )


def _headless(source: str) -> str:
    return (
        f"model {source!r} has no CTC head: pass a checkpoint that was fine-tuned for recognition, such as "
        "facebook/wav2vec2-base-960h"
    )


def _refuse_vocabulary(model: Any, tokenizer: Any) -> None:
    """Refuse a head with a class that is no token, or a blank that is not the tokenizer's padding.

    Raises:
        ValueError: says what does not fit.
    """
    classes, blank = model.config.vocab_size, blank_of(model)
    known = set(tokenizer.get_vocab().values())
    unknown = [index for index in range(classes) if index not in known and index != blank]
    if unknown:
        raise ValueError(f"its tokenizer does not know {len(unknown)} of the model's {classes} classes")
    if hasattr(tokenizer, "word_delimiter_token") and tokenizer.pad_token_id != blank:
        raise ValueError(f"its tokenizer's blank is {tokenizer.pad_token_id}, the model's {blank}")


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
