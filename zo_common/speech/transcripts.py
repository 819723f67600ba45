"""Transcription of recordings of any length, by any kind of speech model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from zo_common.models.whisper.long_form import transcribe_long
from zo_common.speech.audio import MAX_SECONDS, is_silent
from zo_common.speech.long_audio import refuse_short, split
from zo_common.speech.speech_model import SpeechModel, Wave
from zo_common.speech.whisper_model import WhisperModel

LONG_BATCH = 4  # long recordings whose windows are decoded together


def transcribe_waves(
    speech: SpeechModel,
    waves: Sequence[Wave],
    *,
    language: str = "en",
    batch_size: int = 16,
    on_progress: Callable[[float], None] | None = None,
) -> list[str]:
    """Transcribe mono recordings at the model's rate, in order.

    1. Recordings of up to 30 s are transcribed as in an evaluation, so that its error rate applies to them.
    2. Longer ones are transcribed by Whisper's own long form (`transcribe_long`); for other models they are cut at
       pauses (`long_audio.split`), and silent pieces are dropped.

    Args:
        batch_size: pieces whose features are in memory together; models decode as many at a time as in an evaluation.
        on_progress: called with the seconds done.

    Raises:
        AudioProblem: a recording is shorter than one frame of the model.
    """
    for wave in waves:
        refuse_short(wave, speech.least, speech.rate)
    whisper = isinstance(speech, WhisperModel)
    long = {i for i, wave in enumerate(waves) if whisper and _seconds(speech, wave) > MAX_SECONDS}
    work = _Transcripts(speech, waves, language, on_progress or (lambda seconds: None))
    work.short([i for i in range(len(waves)) if i not in long], batch_size)
    work.long(sorted(long))
    return work.texts


class _Transcripts:
    """The texts of recordings, by their places, as they are transcribed."""

    def __init__(
        self, speech: SpeechModel, waves: Sequence[Wave], language: str, on_progress: Callable[[float], None]
    ) -> None:
        self._speech, self._waves, self._language, self._on_progress = speech, waves, language, on_progress
        self._done = 0.0  # seconds
        self.texts = [""] * len(waves)

    def short(self, places: Sequence[int], batch_size: int) -> None:
        """Transcribe recordings in one piece, or in pieces that end at pauses."""
        pieces = [
            (i, piece) for i in places for piece in split(self._waves[i], self._speech.rate) if not is_silent(piece)
        ]
        reader = self._speech.reader(language=self._language)
        for start in range(0, len(pieces), batch_size):
            group = pieces[start : start + batch_size]
            inputs = [reader.of_wave(piece) for _, piece in group]
            for (i, _), found in zip(group, self._speech.transcribe(inputs, language=self._language), strict=True):
                self.texts[i] = f"{self.texts[i]} {found.text}".strip()
            self._advance([piece for _, piece in group])

    def long(self, places: Sequence[int]) -> None:
        """Transcribe recordings of more than a window by Whisper's long form."""
        for start in range(0, len(places), LONG_BATCH):
            chosen = places[start : start + LONG_BATCH]
            waves = [self._waves[i] for i in chosen]
            found = transcribe_long(
                self._speech.model,
                self._speech.processor,
                waves,
                language=self._language,
                on_progress=lambda seconds: self._on_progress(self._done + seconds),
            )
            for i, text in zip(chosen, found, strict=True):
                self.texts[i] = text
            self._advance(waves)

    def _advance(self, waves: Sequence[Wave]) -> None:
        self._done += sum(_seconds(self._speech, wave) for wave in waves)
        self._on_progress(self._done)


def _seconds(speech: SpeechModel, wave: Wave) -> float:
    return len(wave) / speech.rate
