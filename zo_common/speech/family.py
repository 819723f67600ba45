"""What a device asks of a kind of speech model: how it reads recordings, and the loss that a step perturbs."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch

from zo_common.config.run import RunConfig
from zo_common.errors import ConfigError
from zo_common.estimator.step import LossFn
from zo_common.models.compiled import compile_layers
from zo_common.models.ctc.loss import AdaptationLoss, CTCBatch, CTCLoss, SutaSettings
from zo_common.models.load import LoadedModel
from zo_common.models.whisper.frozen_prefix import FrozenPrefix
from zo_common.models.whisper.hypothesis_loss import HypothesisLoss
from zo_common.models.whisper.loss import WhisperLoss
from zo_common.models.whisper.objectives import WhisperBatch, whisper_labels
from zo_common.models.whisper.transcribe import greedy_tokens
from zo_common.speech.ctc import CTCReader
from zo_common.speech.recordings import Reader
from zo_common.speech.whisper import WINDOW_FRAMES, WhisperReader, prompt_ids

LossOf = Callable[[Any], LossFn]


class Family(Protocol):
    """A loaded model seen as one of its kind.

    Attributes:
        objectives: what it can be trained on.
        window: positions of the encoder's window, of which speech fills a part; 0 where there is none.
    """

    objectives: ClassVar[tuple[str, ...]]
    window: int

    def reader(self, *, language: str = "en", cache_dir: Path | None = None) -> Reader:
        """How its recordings are read; one without a transcript has no labels."""

    def losses(self, trained: Collection[str] | None, config: RunConfig, precision: str) -> LossOf:
        """Batch → the loss of a step under `config.objective`; `trained` are the names of the trained tensors.

        Without `trained` nothing is kept from one forward pass to the next. `config.tail_tokens` must be a number.

        What an objective without a text takes from the model itself, frames or hypotheses, is decided when the batch
        comes in, under the weights of that moment, and is the same in all forward passes of the step.
        """

    def compile(self) -> None:
        """`torch.compile` of its layers. Raises ConfigError where there is none."""


class WhisperFamily:
    """A Whisper model."""

    objectives: ClassVar[tuple[str, ...]] = ("supervised", "entropy", "self-training")

    def __init__(self, model: Any, processor: Any) -> None:
        self._model, self._processor = model, processor
        self.window = int(model.model.encoder.embed_positions.weight.shape[0])

    def reader(self, *, language: str = "en", cache_dir: Path | None = None) -> Reader:
        """As `Family.reader`."""
        return WhisperReader(self._processor, language, cache_dir)

    def losses(self, trained: Collection[str] | None, config: RunConfig, precision: str) -> LossOf:
        """As `Family.losses`."""
        prefix, tail = FrozenPrefix(self._model, trained), config.tail_tokens
        assert not isinstance(tail, str)
        if config.objective == "supervised":
            return lambda batch: WhisperLoss(self._model, batch, prefix, tail, precision)
        return lambda batch: HypothesisLoss(
            self._model,
            self._heard(batch, config.language),
            prefix,
            tail,
            precision,
            objective="entropy" if config.objective == "entropy" else "self-training",
            min_utterance=config.min_confidence,
        ).freeze()

    def compile(self) -> None:
        """As `Family.compile`."""
        compile_layers(self._model)

    def _heard(self, batch: WhisperBatch, language: str) -> WhisperBatch:
        """The batch with the model's greedy hypotheses for texts."""
        silence = batch.features[:, :, -1:].expand(-1, -1, WINDOW_FRAMES - batch.features.shape[2])
        windows = torch.cat([batch.features, silence], dim=2)
        texts = greedy_tokens(self._model, self._processor, list(windows), language=language)
        end = int(self._processor.tokenizer.eos_token_id)
        inputs, labels = whisper_labels(prompt_ids(self._processor, language), texts, end)
        return WhisperBatch(batch.features, inputs, labels).to(batch.features.device)


class CTCFamily:
    """A Wav2Vec2, HuBERT or WavLM model with a CTC head."""

    objectives: ClassVar[tuple[str, ...]] = ("supervised", "suta", "entropy")
    window = 0

    def __init__(self, model: Any, processor: Any) -> None:
        self._model, self._processor = model, processor

    def reader(self, *, language: str = "en", cache_dir: Path | None = None) -> Reader:
        """As `Family.reader`; waveforms need no cache, and characters know no language."""
        return CTCReader(self._model, self._processor)

    def losses(self, trained: Collection[str] | None, config: RunConfig, precision: str) -> LossOf:
        """As `Family.losses`; "entropy" is "suta" without class confusion."""
        if config.objective == "supervised":
            return lambda batch: CTCLoss(self._model, batch, precision)
        settings = SutaSettings(
            config.temperature, entropy_weight=1.0 if config.objective == "entropy" else config.entropy_weight
        )

        def loss(batch: CTCBatch) -> LossFn:
            return AdaptationLoss(self._model, batch, settings, precision).freeze()

        return loss

    def compile(self) -> None:
        """There are no compiled layers of CTC models."""
        raise ConfigError("torch-compile is for Whisper models, this is a CTC model: leave it off")


_FAMILIES: dict[str, type[WhisperFamily] | type[CTCFamily]] = {"whisper": WhisperFamily, "ctc": CTCFamily}


def family_of(loaded: LoadedModel, config: RunConfig) -> Family:
    """The family of a loaded model.

    Raises:
        ConfigError: it cannot be trained on `config.objective`.
    """
    family = _FAMILIES[loaded.family](loaded.model, loaded.processor)
    if config.objective not in family.objectives:
        kind = "a CTC" if loaded.family == "ctc" else "a Whisper"
        raise ConfigError(
            f"objective is {config.objective!r}, but {config.model!r} is {kind} model: "
            f"use one of {', '.join(family.objectives)}"
        )
    return family
