"""Speech for CTC models: waveforms and characters, read and checked before any training."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from zo_common.errors import DataError
from zo_common.models.ctc.forward import frame_lengths, frames_of, prepare_waves, receptive_field, takes_samples
from zo_common.models.ctc.loss import CTCBatch, ctc_batch
from zo_common.models.ctc.objectives import alignable
from zo_common.models.ctc.text import CTCVocabulary, left_out_sentence
from zo_common.speech.audio import AudioProblem, decode
from zo_common.speech.manifest import Utterance
from zo_common.speech.recordings import Recordings, WaveExample

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class CTCDataset(Recordings):
    """Checked examples, the feature extractor of batches, the problems of skipped recordings, and notes."""

    examples: tuple[WaveExample, ...] = field(repr=False)
    extractor: Any = field(repr=False)
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def batch(self, indices: Sequence[int]) -> CTCBatch:
        """Return inputs padded to the longest; labels are empty without a transcript."""
        chosen = [self.examples[index] for index in indices]
        return ctc_batch(self.extractor, [e.wave for e in chosen], [e.labels for e in chosen])


class CTCReader:
    """Reader of recordings for a CTC model, as `speech.Reader`; a row without a text has no labels.

    Args:
        fold_accents: as in `CTCVocabulary`.
        language: as in `CTCVocabulary`.
    """

    def __init__(self, model: Any, processor: Any, *, fold_accents: bool = False, language: str = "") -> None:
        self._model, self._extractor = model, processor.feature_extractor
        self._vocabulary = CTCVocabulary(
            processor.tokenizer, model.config.vocab_size, fold_accents=fold_accents, language=language
        )
        self._least = least_samples(model, self._extractor)
        self._lacking: dict[str, Counter[str]] = {}

    def example(self, utterance: Utterance) -> WaveExample | list[str]:
        """Return the example, or its faults."""
        text = utterance.text.strip()
        labels, lacking = self._vocabulary.labels(text)
        rate = self._extractor.sampling_rate
        faults = []
        if text and not labels:
            faults.append(
                "the transcript has no character of the model's vocabulary, expected such: correct it, or take a model "
                "for the language."
            )
        try:
            wave = decode(utterance.audio, rate)
        except AudioProblem as problem:
            return [*faults, str(problem)]
        if len(wave) < self._least:
            faults.append(
                f"the recording has {len(wave)} samples, expected at least {self._least} at {rate} Hz, what one frame "
                "of the model sees: leave it out."
            )
        elif fault := self._unaligned(wave, labels):
            faults.append(fault)
        if faults:
            return faults
        self._lacking[utterance.where] = lacking
        return self._example(wave, text, labels, utterance.where)

    def of_wave(self, wave: npt.NDArray[np.float32], labels: Sequence[int] = ()) -> WaveExample:
        """As `WaveReader.of_wave`."""
        return self._example(wave, "", labels, "")

    def _example(self, wave: npt.NDArray[np.float32], text: str, labels: Sequence[int], where: str) -> WaveExample:
        seconds = len(wave) / self._extractor.sampling_rate
        return WaveExample(torch.from_numpy(wave)[None], seconds, text, tuple(labels), where)

    def recordings(self, examples: tuple[WaveExample, ...], skipped: tuple[str, ...]) -> CTCDataset:
        """Return examples of this reader as a data set."""
        message = left_out_sentence(
            self._lacking[example.where] for example in examples if example.where in self._lacking
        )
        if message:
            _tell(message)
        return CTCDataset(examples, self._extractor, skipped, (message,) if message else ())

    def _unaligned(self, wave: npt.NDArray[np.float32], labels: list[int]) -> str:
        """Return the fault if there are too few frames for the labels, else ""."""
        samples = torch.tensor([len(wave)])
        lengths = samples if takes_samples(self._extractor) else prepare_waves(self._extractor, [wave])[1]
        frames = frames_of(self._model)(lengths)
        if bool(alignable(frames, torch.tensor([labels], dtype=torch.int64), torch.tensor([len(labels)]))):
            return ""
        return (
            f"the transcript has {len(labels)} characters, the recording {int(frames)} frames of the model, expected "
            "at least a frame for each and one between two equal ones: check that they belong together."
        )


@cache
def _tell(message: str) -> None:
    """Log a warning once per process, even if the same recordings are read again."""
    log.warning(message)


def least_samples(model: Any, extractor: Any) -> int:
    """Return the minimum number of samples for one frame of the model: by its convolutions, else by bisection."""
    if takes_samples(extractor):
        return receptive_field(model.config)
    noise = np.random.default_rng(0).standard_normal(extractor.sampling_rate).astype(np.float32)
    fails, works = 0, len(noise)
    while works - fails > 1:
        middle = (fails + works) // 2
        if _makes_a_frame(model, extractor, noise[:middle]):
            works = middle
        else:
            fails = middle
    return works


def _makes_a_frame(model: Any, extractor: Any, wave: npt.NDArray[np.float32]) -> bool:
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values, lengths = prepare_waves(extractor, [wave])
            frame_lengths(model, lengths)
    except (DataError, ValueError, IndexError, RuntimeError, ZeroDivisionError):
        return False
    return bool(torch.isfinite(values).all())
