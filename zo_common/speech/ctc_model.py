"""`SpeechModel`s with a CTC head."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from zo_common.estimator.step import LossFn
from zo_common.models.ctc.forward import ctc_logits, uses_attention_mask
from zo_common.models.ctc.loss import AdaptationLoss, CTCBatch, CTCLoss
from zo_common.models.ctc.objectives import frame_entropy, frame_mask
from zo_common.models.ctc.transcribe import transcribe_waves
from zo_common.speech.ctc import CTCReader, least_samples
from zo_common.speech.loss_settings import LossSettings
from zo_common.speech.recordings import WaveExample
from zo_common.speech.speech_model import LossOf, SpeechModel, Transcript


class CTCModel(SpeechModel):
    """A model of any class that transformers registers for CTC."""

    name = "CTC"
    unit = "character"
    objectives = ("supervised", "suta", "entropy")
    adapts_by = ("suta", "entropy")
    adapts_to_silence = True  # frames of an empty transcript may still be uncertain
    window = 0

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor
        self.hears_padding = not uses_attention_mask(model.config)
        self.rate = int(processor.feature_extractor.sampling_rate)
        self.least = least_samples(model, processor.feature_extractor)

    def reader(self, *, language: str = "en", cache_dir: Path | None = None, fold_accents: bool = False) -> CTCReader:
        """As `SpeechModel.reader`; waveforms need no cache."""
        return CTCReader(self.model, self.processor, fold_accents=fold_accents, language=language)

    def losses(self, trained: Collection[str] | None, settings: LossSettings, precision: str) -> LossOf:
        """As `SpeechModel.losses`; "entropy" is "suta" without class confusion."""
        if settings.objective == "supervised":
            return lambda batch: CTCLoss(self.model, batch, precision)
        suta = replace(settings.suta, entropy_weight=1.0) if settings.objective == "entropy" else settings.suta
        return lambda batch: AdaptationLoss(self.model, batch, suta, precision).freeze()

    def episode(
        self, batch: CTCBatch, trained: Collection[str], settings: LossSettings, precision: str
    ) -> Callable[[], LossFn]:
        """As `SpeechModel.episode`; the frames that count are chosen again as the model adapts."""
        make = self.losses(trained, settings, precision)
        return lambda: make(batch)

    def held_out_losses(self, batch: CTCBatch) -> torch.Tensor:
        """As `SpeechModel.held_out_losses`."""
        return CTCLoss(self.model, batch)()

    def uncertainties(self, batch: CTCBatch) -> torch.Tensor:
        """As `SpeechModel.uncertainties`."""
        logits, frames = ctc_logits(self.model, batch.values, batch.lengths)
        return frame_entropy(logits, frame_mask(frames, logits.shape[1]))

    def transcribe(
        self,
        examples: Sequence[WaveExample],
        *,
        language: str = "en",
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Transcript]:
        """As `SpeechModel.transcribe`, one utterance per forward pass, as padding changes the logits."""
        waves = [example.wave for example in examples]
        return [
            Transcript(text) for text in transcribe_waves(self.model, self.processor, waves, on_progress=on_progress)
        ]
