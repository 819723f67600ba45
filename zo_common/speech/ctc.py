"""Speech for CTC models: waveforms and characters; all of it is read and checked before any training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from zo_common.models.ctc.forward import receptive_field
from zo_common.models.ctc.loss import CTCBatch, ctc_batch
from zo_common.models.ctc.objectives import alignable
from zo_common.models.ctc.text import ctc_labels
from zo_common.speech.audio import AudioProblem, decode
from zo_common.speech.manifest import Utterance
from zo_common.speech.recordings import Example, Recordings


@dataclass(frozen=True, eq=False)
class CTCExample(Example):
    """One utterance: its features are the samples as recorded, float32 (1, N), its labels characters."""

    @property
    def wave(self) -> npt.NDArray[np.float32]:
        """The samples, (N,)."""
        samples: npt.NDArray[np.float32] = self.features[0].numpy()
        return samples


@dataclass(frozen=True, eq=False)
class CTCDataset(Recordings):
    """Checked examples, the feature extractor that normalises each of them, and the problems that were skipped."""

    examples: tuple[CTCExample, ...] = field(repr=False)
    extractor: Any = field(repr=False)
    skipped: tuple[str, ...] = ()

    def batch(self, indices: Sequence[int]) -> CTCBatch:
        """Normalised waveforms padded to the longest of them; labels are empty where nobody knows the text."""
        chosen = [self.examples[index] for index in indices]
        return ctc_batch(self.extractor, [e.wave for e in chosen], [e.labels for e in chosen])


class CTCReader:
    """Reads recordings for a CTC model, as `speech.Reader`; a row without a text has no labels."""

    def __init__(self, model: Any, processor: Any) -> None:
        self._model, self._processor = model, processor
        self._least = receptive_field(model.config)

    def example(self, utterance: Utterance) -> CTCExample | list[str]:
        """The example, or what is wrong with it."""
        text = utterance.text.strip()
        labels = ctc_labels(self._processor.tokenizer, text, self._model.config.vocab_size)
        rate = self._processor.feature_extractor.sampling_rate
        faults = []
        if text and not labels:
            faults.append("the transcript has no character of the model's vocabulary, expected such: correct it.")
        try:
            wave = decode(utterance.audio, rate)
        except AudioProblem as problem:
            return [*faults, str(problem)]
        if len(wave) < self._least:
            faults.append(
                f"the recording has {len(wave)} samples, expected at least {self._least} at {rate} Hz, what one frame "
                "of the model sees: delete the row."
            )
        elif fault := self._unaligned(len(wave), labels):
            faults.append(fault)
        return faults or self._example(wave, text, labels, utterance.where)

    def of_wave(self, wave: npt.NDArray[np.float32], labels: Sequence[int] = ()) -> CTCExample:
        """As `WaveReader.of_wave`."""
        return self._example(wave, "", labels, "")

    def _example(self, wave: npt.NDArray[np.float32], text: str, labels: Sequence[int], where: str) -> CTCExample:
        seconds = len(wave) / self._processor.feature_extractor.sampling_rate
        return CTCExample(torch.from_numpy(wave)[None], seconds, text, tuple(labels), where)

    def recordings(self, examples: tuple[CTCExample, ...], skipped: tuple[str, ...]) -> CTCDataset:
        """Examples of this reader as a data set."""
        return CTCDataset(examples, self._processor.feature_extractor, skipped)

    def _unaligned(self, samples: int, labels: list[int]) -> str:
        """What is wrong where the frames are too few for the characters; else nothing."""
        frames = self._model._get_feat_extract_output_lengths(torch.tensor([samples]))
        if bool(alignable(frames, torch.tensor([labels], dtype=torch.int64), torch.tensor([len(labels)]))):
            return ""
        return (
            f"the transcript has {len(labels)} characters, the recording {int(frames)} frames of the model, expected "
            "at least a frame for each and one between two equal ones: check that they belong together."
        )
