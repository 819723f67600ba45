"""Choice of the kind of `SpeechModel` for a loaded model."""

from __future__ import annotations

from typing import Any

from zo_common.config.run import RunConfig
from zo_common.errors import ConfigError
from zo_common.models.load import CAUSAL, SEQ2SEQ, LoadedModel
from zo_common.speech.ctc_model import CTCModel
from zo_common.speech.speech_model import SpeechModel
from zo_common.speech.token_model import CausalModel, Seq2SeqModel
from zo_common.speech.whisper_model import WhisperModel

Kind = type[WhisperModel] | type[CTCModel] | type[Seq2SeqModel] | type[CausalModel]


def kind_of(config: Any) -> Kind:
    """Return the kind of a model that `load_model` supports, from its `PreTrainedConfig`."""
    if config.model_type == "whisper":
        return WhisperModel
    if config.model_type in SEQ2SEQ:
        return Seq2SeqModel
    return CausalModel if config.model_type in CAUSAL else CTCModel


def speech_model(loaded: LoadedModel) -> SpeechModel:
    """Return a loaded model as a `SpeechModel` of its kind."""
    model: Any = loaded.model
    return kind_of(model.config)(model, loaded.processor)


def trainable(loaded: LoadedModel, config: RunConfig) -> SpeechModel:
    """Return a loaded model as a `SpeechModel` for a run.

    Raises:
        ConfigError: the model cannot be trained on `config.objective`.
    """
    speech = speech_model(loaded)
    if config.objective not in speech.objectives:
        raise ConfigError(
            f"objective is {config.objective!r}, but {config.model!r} is a {speech.name} model: "
            f"use one of {', '.join(speech.objectives)}"
        )
    return speech
