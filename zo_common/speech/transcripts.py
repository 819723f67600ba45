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
    2. Longer recordings are transcribed by Whisper's own long form (`transcribe_long`); for other models they are cut
    at
       pauses (`long_audio.split`), and silent pieces are dropped.

    Args:
        batch_size: pieces whose features are in memory together; models decode as many at a time as in an evaluation.
        on_progress: called with the seconds done.

    Raises:
        AudioProblem: a recording is shorter than one frame of the model.
    """
    for wave in waves:
        refuse_short(wave, speech.least, speech.rate)
    texts = [""] * len(waves)
    done = 0.0
    long = [
        i for i, wave in enumerate(waves) if isinstance(speech, WhisperModel) and _seconds(speech, wave) > MAX_SECONDS
    ]
    pieces = [
        (i, piece)
        for i, wave in enumerate(waves)
        if i not in long
        for piece in split(wave, speech.rate)
        if not is_silent(piece)
    ]

    def told(seconds: float) -> None:
        if on_progress is not None:
            on_progress(done + seconds)

    reader = speech.reader(language=language)
    for start in range(0, len(pieces), batch_size):
        group = pieces[start : start + batch_size]
        heard = speech.transcribe([reader.of_wave(piece) for _, piece in group], language=language)
        for (i, _), one in zip(group, heard, strict=True):
            texts[i] = f"{texts[i]} {one.text}".strip()
        done += sum(_seconds(speech, piece) for _, piece in group)
        told(0)
    for start in range(0, len(long), LONG_BATCH):
        chosen = long[start : start + LONG_BATCH]
        found = transcribe_long(
            speech.model, speech.processor, [waves[i] for i in chosen], language=language, on_progress=told
        )
        for i, text in zip(chosen, found, strict=True):
            texts[i] = text
        done += sum(_seconds(speech, waves[i]) for i in chosen)
        told(0)
    return texts


def _seconds(speech: SpeechModel, wave: Wave) -> float:
    return len(wave) / speech.rate
