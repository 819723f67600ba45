"""Whisper as a `SpeechModel`: a 30 s window with a merged silent tail, and a stored encoder prefix."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch

from zo_common.estimator.step import LossFn
from zo_common.models.compiled import compile_layers
from zo_common.models.whisper.frozen_prefix import FrozenPrefix
from zo_common.models.whisper.hypothesis_loss import HypothesisLoss
from zo_common.models.whisper.loss import WhisperLoss
from zo_common.models.whisper.objectives import WhisperBatch, whisper_labels, whisper_losses
from zo_common.models.whisper.transcribe import greedy, greedy_tokens
from zo_common.speech.loss_settings import LossSettings
from zo_common.speech.speech_model import LossOf, SpeechModel, Transcript
from zo_common.speech.whisper import WINDOW_FRAMES, SpeechExample, WhisperReader, prompt_ids

_EVALUATION_TAIL = 64  # twice that of training: within a hundredth of the 30 s window's loss


class WhisperModel(SpeechModel):
    """A `WhisperForConditionalGeneration` of any size."""

    name = "Whisper"
    unit = "token"
    objectives = ("supervised", "entropy", "self-training")
    adapts_by = ("entropy", "self-training")
    adapts_to_silence = False
    hears_padding = False

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor
        self.window = int(model.model.encoder.embed_positions.weight.shape[0])
        self.rate = int(processor.feature_extractor.sampling_rate)
        self.least = int(processor.feature_extractor.n_fft)

    def reader(
        self, *, language: str = "en", cache_dir: Path | None = None, fold_accents: bool = False
    ) -> WhisperReader:
        """As `SpeechModel.reader`; its tokens can encode any text."""
        return WhisperReader(self.processor, language, cache_dir)

    def losses(self, trained: Collection[str] | None, settings: LossSettings, precision: str) -> LossOf:
        """As `SpeechModel.losses`."""
        if settings.objective == "supervised":
            prefix, tail = FrozenPrefix(self.model, trained), self._tail(settings)
            return lambda batch: WhisperLoss(self.model, batch, prefix, tail, precision)
        return lambda batch: self.episode(
            self._with_hypotheses(batch, settings.language), trained, settings, precision
        )()

    def episode(
        self, batch: WhisperBatch, trained: Collection[str] | None, settings: LossSettings, precision: str
    ) -> Callable[[], LossFn]:
        """As `SpeechModel.episode`; one object for all steps, as the hypotheses stay."""
        loss = HypothesisLoss(
            self.model,
            batch,
            FrozenPrefix(self.model, trained),
            self._tail(settings),
            precision,
            objective="entropy" if settings.objective == "entropy" else "self-training",
            min_utterance=settings.min_confidence,
        ).freeze()
        return lambda: loss

    def held_out_losses(self, batch: WhisperBatch) -> torch.Tensor:
        """As `SpeechModel.held_out_losses`."""
        return whisper_losses(self.model, batch, _EVALUATION_TAIL)

    def uncertainties(self, batch: WhisperBatch) -> torch.Tensor:
        """As `SpeechModel.uncertainties`."""
        return HypothesisLoss(self.model, batch, FrozenPrefix(self.model, ()), _EVALUATION_TAIL, objective="entropy")()

    def transcribe(
        self,
        examples: Sequence[SpeechExample],
        *,
        language: str = "en",
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Transcript]:
        """As `SpeechModel.transcribe`, each at the start of its own window."""
        windows = [example.window() for example in examples]
        found = greedy(self.model, self.processor, windows, language=language, on_progress=on_progress)
        return [Transcript(text, tuple(tokens)) for text, tokens in found]

    def compile(self) -> None:
        """As `SpeechModel.compile`."""
        compile_layers(self.model)

    def _tail(self, settings: LossSettings) -> int:
        """Return the number of tail tokens; for the whole window, one for each position."""
        return self.window if settings.tail_tokens is None else settings.tail_tokens

    def _with_hypotheses(self, batch: WhisperBatch, language: str) -> WhisperBatch:
        """Return the batch with the model's greedy hypotheses as texts."""
        silence = batch.features[:, :, -1:].expand(-1, -1, WINDOW_FRAMES - batch.features.shape[2])
        windows = torch.cat([batch.features, silence], dim=2)
        texts = greedy_tokens(self.model, self.processor, list(windows), language=language)
        end = int(self.processor.tokenizer.eos_token_id)
        inputs, labels = whisper_labels(prompt_ids(self.processor, language), texts, end)
        return WhisperBatch(batch.features, inputs, labels).to(batch.features.device)
