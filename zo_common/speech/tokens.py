"""Speech for models that generate tokens, except Whisper: waveforms and tokens, checked before any training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from zo_common.models.tokens.batch import TokenBatch
from zo_common.models.tokens.forms import Form, Wave
from zo_common.speech.audio import AudioProblem, decode
from zo_common.speech.manifest import Utterance
from zo_common.speech.recordings import Recordings, WaveExample

LEAST_SECONDS = 0.1


@dataclass(frozen=True, eq=False)
class TokenDataset(Recordings):
    """Checked examples, the form of the model's inputs, and the problems of skipped recordings."""

    examples: tuple[WaveExample, ...] = field(repr=False)
    form: Form = field(repr=False)
    skipped: tuple[str, ...] = ()

    def batch(self, indices: Sequence[int]) -> TokenBatch:
        """Return inputs padded to the longest."""
        chosen = [self.examples[index] for index in indices]
        return self.form.batch([e.wave for e in chosen], [list(e.labels) for e in chosen])


class TokenReader:
    """Reader of recordings, as `speech.Reader`; a row without a text has no tokens."""

    def __init__(self, form: Form, rate: int) -> None:
        self._form, self._rate = form, rate
        self._least = round(LEAST_SECONDS * rate)

    def example(self, utterance: Utterance) -> WaveExample | list[str]:
        """Return the example, or its faults."""
        text = utterance.text.strip()
        tokens = self._form.tokens(text) if text else []
        faults = []
        if len(tokens) > self._form.most:
            faults.append(
                f"the transcript has {len(tokens)} tokens, expected at most {self._form.most}: split the recording."
            )
        try:
            wave = decode(utterance.audio, self._rate)
        except AudioProblem as problem:
            return [*faults, str(problem)]
        if len(wave) < self._least:
            faults.append(
                f"the recording has {len(wave)} samples, expected at least {self._least} at {self._rate} Hz: delete "
                "the row."
            )
        return faults or self._example(wave, text, tokens, utterance.where)

    def of_wave(self, wave: Wave, labels: Sequence[int] = ()) -> WaveExample:
        """As `WaveReader.of_wave`."""
        return self._example(wave, "", labels, "")

    def recordings(self, examples: tuple[WaveExample, ...], skipped: tuple[str, ...]) -> TokenDataset:
        """Return examples of this reader as a data set."""
        return TokenDataset(examples, self._form, skipped)

    def _example(self, wave: Wave, text: str, labels: Sequence[int], where: str) -> WaveExample:
        return WaveExample(torch.from_numpy(wave)[None], len(wave) / self._rate, text, tuple(labels), where)
