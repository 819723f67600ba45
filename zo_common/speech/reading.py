"""Reading of recordings for a loaded model."""

from __future__ import annotations

from collections.abc import Callable

from zo_common.models.load import LoadedModel
from zo_common.speech.manifest import Manifest, Utterance
from zo_common.speech.model_kinds import speech_model
from zo_common.speech.recordings import Reader, Recordings
from zo_common.speech.recordings import read_speech as read_with


def read_speech(
    source: str | Manifest,
    reader: Reader | LoadedModel,
    *,
    split: str | None = None,
    text_column: str = "transcription",
    skip_bad: bool = False,
    keep: Callable[[Utterance], bool] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Recordings:
    """Read, decode and check every utterance that `keep` accepts.

    Args:
        source: folder or hub id, as for `read_manifest`, or its result.
        reader: a model from `load_model` (a multilingual Whisper then expects English), or a `SpeechModel.reader`.
        progress: called with the utterances done and their total.

    Raises:
        DataError: there are faults, without `skip_bad` (the error has those of all rows); or no utterance is left.
        ConfigError: the reader's settings do not fit.
    """
    if isinstance(reader, LoadedModel):
        reader = speech_model(reader).reader()
    return read_with(
        source, reader, split=split, text_column=text_column, skip_bad=skip_bad, keep=keep, progress=progress
    )
