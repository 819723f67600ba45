"""Evaluation on held-out speech of a device or a server: loss, and error rates of greedy transcripts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zo_common.speech.metrics import Scores, is_unspaced, score
from zo_common.speech.recordings import Recordings
from zo_common.speech.speech_model import SpeechModel


@dataclass(frozen=True)
class Evaluation:
    """Mean loss over utterances (nats per token or character), error counts, the transcripts, and their language."""

    loss: float
    scores: Scores
    hypotheses: tuple[str, ...]
    language: str = "en"

    def summary(self) -> dict[str, Any]:
        """Return plain numbers for logs, with the names of the headline metric and of the normaliser."""
        return {"loss": self.loss, **self.scores.summary(self.language)}


@dataclass(frozen=True)
class Health:
    """Measures that show a collapse, on speech with references.

    Attributes:
        loss: supervised, nats per token or character.
        wer: word error rate, or character error rate of a language without spaces.
        uncertainty: mean entropy in nats, of the frames (CTC) or of the references' tokens (Whisper), which objectives
            without a text lower.
        diversity: entropy of the transcribed words ÷ that of the reference's, at most 1; 0 if all transcripts are one
            word. For a language without spaces, of the characters.
    """

    loss: float
    wer: float
    uncertainty: float
    diversity: float


@torch.inference_mode()
def held_out_loss(speech: SpeechModel, data: Recordings, batch_size: int = 16) -> float:
    """Return the mean per-utterance loss in float32, in nats per token or character."""
    return _mean_of_batches(speech.held_out_losses, speech, data, batch_size)


@torch.inference_mode()
def utterance_losses(
    speech: SpeechModel,
    data: Recordings,
    batch_size: int = 16,
    on_progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float64]:
    """Return the loss of each utterance, (N,) in the order of `data`; `held_out_loss` is their mean.

    Args:
        on_progress: called with the utterances done and their total, after each batch; its errors pass through.
    """
    losses = np.empty(len(data))
    done = 0
    for chosen, found in zip(
        data.length_sorted_batches(batch_size), _batches(speech.held_out_losses, speech, data, batch_size), strict=True
    ):
        losses[chosen] = found
        done += len(chosen)
        if on_progress is not None:
            on_progress(done, len(data))
    return losses


@torch.inference_mode()
def health(
    speech: SpeechModel,
    data: Recordings,
    *,
    language: str = "en",
    on_progress: Callable[[int, int], None] | None = None,
) -> Health:
    """Measure the health of a model; see `Health`."""
    found = evaluate(speech, data, language=language, on_progress=on_progress)
    uncertainty = _mean_of_batches(speech.uncertainties, speech, data, 16)
    entropy = _word_entropy(data.texts, language)
    diversity = min(1.0, _word_entropy(found.hypotheses, language) / entropy) if entropy else 1.0
    return Health(found.loss, found.scores.headline(language), uncertainty, diversity)


Measure = Callable[[Any], torch.Tensor]


def _mean_of_batches(measure: Measure, speech: SpeechModel, data: Recordings, batch_size: int) -> float:
    return float(np.mean(np.concatenate(list(_batches(measure, speech, data, batch_size)))))


def _batches(measure: Measure, speech: SpeechModel, data: Recordings, batch_size: int) -> Iterator[NDArray[np.float64]]:
    """Yield the measure of each example, in batches of similar length."""
    device = next(speech.model.parameters()).device
    for chosen in data.length_sorted_batches(batch_size):
        yield measure(data.batch(chosen).to(device)).double().numpy(force=True)


def _word_entropy(texts: Sequence[str], language: str) -> float:
    """Return the entropy in nats of the words of some texts; of the characters in a language without spaces."""
    words = [word for text in texts for word in text.lower().split()]
    counts = Counter("".join(words) if is_unspaced(language) else words)
    total = counts.total()
    return -sum(n / total * math.log(n / total) for n in counts.values())


def evaluate(
    speech: SpeechModel,
    data: Recordings,
    *,
    language: str = "en",
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Return loss and error rates of a data set."""
    transcribed = speech.transcribe(data.examples, language=language, on_progress=on_progress)
    hypotheses = tuple(h.text for h in transcribed)
    scores = score(data.texts, hypotheses, language=language)
    return Evaluation(held_out_loss(speech, data), scores, hypotheses, language)
