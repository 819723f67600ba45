"""Recordings read for a loaded model."""

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
        source: folder or hub id, as of `read_manifest`, or what it has read.
        reader: the model that the speech is for, as `load_model` gives it (a multilingual Whisper hears English then),
            or how a kind of model reads recordings.
        progress: called with the utterances done and their total.

    Raises:
        DataError: with all problems of all rows, unless `skip_bad`; or no utterance is left.
        ConfigError: the reader cannot work with its settings.
    """
    if isinstance(reader, LoadedModel):
        reader = speech_model(reader).reader()
    return read_with(
        source, reader, split=split, text_column=text_column, skip_bad=skip_bad, keep=keep, progress=progress
    )
