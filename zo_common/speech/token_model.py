"""`SpeechModel`s that generate tokens, except Whisper: sequence to sequence, and causal ones with a masked prompt."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from zo_common.errors import ConfigError
from zo_common.estimator.step import LossFn
from zo_common.models.objectives import entropy, spread_over
from zo_common.models.tokens.batch import TokenBatch
from zo_common.models.tokens.forms import CausalForm, Form, Seq2SeqForm
from zo_common.models.tokens.loss import TokenLoss
from zo_common.models.tokens.transcribe import transcribe_tokens
from zo_common.speech.loss_settings import LossSettings
from zo_common.speech.recordings import WaveExample
from zo_common.speech.speech_model import LossOf, SpeechModel, Transcript
from zo_common.speech.tokens import LEAST_SECONDS, TokenReader


class TokenModel(SpeechModel):
    """A model that uses its class's own forward pass."""

    unit = "token"
    objectives = ("supervised",)
    adapts_by = ()
    adapts_to_silence = False
    hears_padding = False
    window = 0
    form: ClassVar[type[Seq2SeqForm] | type[CausalForm]]

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor
        self.rate = int(processor.feature_extractor.sampling_rate)
        self.least = round(LEAST_SECONDS * self.rate)

    def reader(self, *, language: str = "en", cache_dir: Path | None = None, fold_accents: bool = False) -> TokenReader:
        """As `SpeechModel.reader`; features are computed for each batch."""
        return TokenReader(self._form(language), self.rate)

    def losses(self, trained: Collection[str] | None, settings: LossSettings, precision: str) -> LossOf:
        """As `SpeechModel.losses`."""
        return lambda batch: TokenLoss(self.model, batch, precision)

    def episode(
        self, batch: TokenBatch, trained: Collection[str] | None, settings: LossSettings, precision: str
    ) -> Callable[[], LossFn]:
        """Raise ConfigError: this kind of model has no adaptation."""
        raise ConfigError(f"a {self.name} model cannot adapt without transcripts: train it instead")

    def held_out_losses(self, batch: TokenBatch) -> torch.Tensor:
        """As `SpeechModel.held_out_losses`."""
        return TokenLoss(self.model, batch)()

    def uncertainties(self, batch: TokenBatch) -> torch.Tensor:
        """As `SpeechModel.uncertainties`."""
        counted, logits = TokenLoss(self.model, batch).logits()
        return spread_over(entropy(logits), counted)

    def transcribe(
        self,
        examples: Sequence[WaveExample],
        *,
        language: str = "en",
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Transcript]:
        """As `SpeechModel.transcribe`."""
        waves = [example.wave for example in examples]
        found = transcribe_tokens(self.model, self.processor, self._form(language), waves, on_progress)
        return [Transcript(text, tuple(tokens)) for text, tokens in found]

    def _form(self, language: str) -> Form:
        return self.form(self.model, self.processor, language)


class Seq2SeqModel(TokenModel):
    """Moonshine, Speech2Text, SpeechEncoderDecoder, Canary."""

    name = "sequence-to-sequence"
    form = Seq2SeqForm


class CausalModel(TokenModel):
    """Qwen3-ASR, OmniASR."""

    name = "causal"
    form = CausalForm
