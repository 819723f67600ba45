"""How each family of models hears: transcripts of pieces of audio, and the objective that adapts to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from zo_common.errors import ConfigError
from zo_common.estimator.step import LossFn, joined
from zo_common.models.ctc.forward import receptive_field, uses_attention_mask
from zo_common.models.ctc.loss import AdaptationLoss, CTCBatch, SutaSettings, ctc_batch
from zo_common.models.ctc.transcribe import transcribe_waves
from zo_common.models.load import LoadedModel
from zo_common.models.whisper.frozen_prefix import FrozenPrefix
from zo_common.models.whisper.hypothesis_loss import HypothesisLoss, Objective
from zo_common.models.whisper.objectives import WhisperBatch, whisper_labels
from zo_common.models.whisper.transcribe import greedy_tokens
from zo_common.speech.whisper import prompt_ids

Wave = NDArray[np.float32]
OBJECTIVES = {"ctc": ("suta", "entropy"), "whisper": ("entropy", "self-training")}  # the first is the default
FORWARD_SECONDS = 60.0  # of audio in one forward pass, padding included
_SILENT_FRAMES = 30  # behind the speech: the forward pass needs 8, of which none may see the speech
_WINDOW_FRAMES = 3000
_DECODED_AT_ONCE = 8


@dataclass(frozen=True)
class Heard:
    """A piece's transcript, and the text tokens it consists of, where the model has tokens."""

    text: str
    tokens: tuple[int, ...] = field(default=(), repr=False)


class Hearing(Protocol):
    """What an adapter asks of a family of models.

    Attributes:
        rate: in Hz, of the waves.
        least: samples that the shortest utterance must have.
    """

    rate: int
    least: int

    def listen(self, pieces: Sequence[Wave]) -> list[Heard]:
        """Greedy transcripts under the present weights; the same pieces together give the same bits."""

    def can_adapt(self, heard: Heard) -> bool:
        """Whether there is anything to adapt to in a piece that was heard so."""

    def objective(self, pieces: Sequence[Wave], heard: Sequence[Heard]) -> Callable[[], LossFn]:
        """Makes the loss of a step from the present weights: what is trusted is decided once for all its passes.

        `heard` is what `listen` gave for the pieces, of which there is at least one, all of them `can_adapt`.
        """


def hearing_of(
    loaded: LoadedModel, trained: Sequence[str], objective: str, *, language: str, suta: SutaSettings, precision: str
) -> Hearing:
    """The way of hearing of a loaded model.

    Args:
        trained: names of the trained tensors.
        objective: one of `OBJECTIVES` of the model's family; "" takes the first.

    Raises:
        ConfigError: the family has no such objective, or the model does not know the language.
    """
    known = OBJECTIVES[loaded.family]
    chosen = objective or known[0]
    if chosen not in known:
        raise ConfigError(f"objective is {chosen!r}, a {loaded.family} model adapts by one of: {', '.join(known)}")
    if loaded.family == "ctc":
        if chosen == "entropy":
            suta = SutaSettings(suta.temperature, 1.0, suta.reweight, suta.confusion_of_blanks)
        return CTCHearing(loaded, suta, precision)
    return WhisperHearing(loaded, trained, "entropy" if chosen == "entropy" else "self-training", language, precision)


class CTCHearing:
    """Wav2Vec2, HuBERT and WavLM: frames of raw audio."""

    def __init__(self, loaded: LoadedModel, suta: SutaSettings, precision: str) -> None:
        self._model: Any = loaded.model
        self._processor = loaded.processor
        self._suta, self._precision = suta, precision
        self.rate = int(loaded.processor.feature_extractor.sampling_rate)
        self.least = receptive_field(self._model.config)

    def listen(self, pieces: Sequence[Wave]) -> list[Heard]:
        """One piece a forward pass, as padding is heard."""
        return [Heard(text) for text in transcribe_waves(self._model, self._processor, pieces)]

    def can_adapt(self, heard: Heard) -> bool:
        """Always: the frames of what was heard as silence may be confused."""
        return True

    def objective(self, pieces: Sequence[Wave], heard: Sequence[Heard]) -> Callable[[], LossFn]:
        """Entropy and class confusion of the frames."""
        device = next(self._model.parameters()).device
        padded = uses_attention_mask(self._model.config)
        batches: list[CTCBatch] = [
            ctc_batch(self._processor.feature_extractor, group).to(device)
            for group in _groups(pieces, self.rate, padded)
        ]
        return lambda: joined(
            [AdaptationLoss(self._model, batch, self._suta, self._precision).freeze() for batch in batches]
        )


class WhisperHearing:
    """Whisper: log-mel windows of 30 s, and its own transcript to be surer of."""

    def __init__(
        self, loaded: LoadedModel, trained: Sequence[str], objective: Objective, language: str, precision: str
    ) -> None:
        self._model: Any = loaded.model
        self._processor = loaded.processor
        self._prefix = FrozenPrefix(loaded.model, trained)
        self._objective, self._language, self._precision = objective, language, precision
        self._prompt = prompt_ids(loaded.processor, language)
        self.rate = int(loaded.processor.feature_extractor.sampling_rate)
        self.least = int(loaded.processor.feature_extractor.n_fft)

    def listen(self, pieces: Sequence[Wave]) -> list[Heard]:
        """Each piece at the start of a window of its own."""
        found: list[Heard] = []
        for start in range(0, len(pieces), _DECODED_AT_ONCE):
            windows = [self._window(piece) for piece in pieces[start : start + _DECODED_AT_ONCE]]
            tokens = greedy_tokens(self._model, self._processor, windows, language=self._language)
            found += [Heard(self._processor.tokenizer.decode(row).strip(), tuple(row)) for row in tokens]
        return found

    def can_adapt(self, heard: Heard) -> bool:
        """Whether there is a transcript to be surer of."""
        return bool(heard.tokens)

    def objective(self, pieces: Sequence[Wave], heard: Sequence[Heard]) -> Callable[[], LossFn]:
        """Entropy of, or training on, what was heard."""
        tokens = iter([h.tokens for h in heard])
        losses: list[LossFn] = []
        for group in _groups(pieces, self.rate, padded=True):
            batch = self._batch(group, [next(tokens) for _ in group])
            loss = HypothesisLoss(
                self._model, batch, self._prefix, precision=self._precision, objective=self._objective
            )
            losses.append(loss.freeze())
        return lambda: joined(losses)

    def _batch(self, pieces: Sequence[Wave], tokens: Sequence[tuple[int, ...]]) -> WhisperBatch:
        end = int(self._processor.tokenizer.eos_token_id)
        inputs, labels = whisper_labels(self._prompt, [list(row) for row in tokens], end)
        kept = -(-max(map(len, pieces)) // int(self._processor.feature_extractor.hop_length)) + _SILENT_FRAMES
        kept = min(kept + kept % 2, _WINDOW_FRAMES)
        features = torch.stack([self._window(piece)[:, :kept] for piece in pieces])
        return WhisperBatch(features, inputs, labels).to(next(self._model.parameters()).device)

    def _window(self, piece: Wave) -> torch.Tensor:
        extractor = self._processor.feature_extractor
        features = extractor(piece, sampling_rate=self.rate, return_tensors="np").input_features[0]
        return torch.from_numpy(np.asarray(features, np.float32))


def _groups(pieces: Sequence[Wave], rate: int, padded: bool) -> list[list[Wave]]:
    """Neighbouring pieces that share a forward pass; of equal length only, unless the model does not hear padding."""
    groups: list[list[Wave]] = []
    for piece in pieces:
        last = groups[-1] if groups else []
        longest = max(len(piece), *map(len, last)) if last else 0
        fits = (len(last) + 1) * longest <= FORWARD_SECONDS * rate
        if last and fits and (padded or len(last[0]) == len(piece)):
            last.append(piece)
        else:
            groups.append([piece])
    return groups
