"""Transcripts against references: what is counted."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_ctc import noise_waves, write_tiny_ctc

from zo_common.models.load import load_model
from zo_common.speech.evaluation import evaluate
from zo_common.speech.metrics import ErrorCounts
from zo_common.speech.model_kinds import speech_model
from zo_common.speech.speech_model import SpeechModel, Transcript


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> SpeechModel:
    """A CTC model with a layer norm."""
    return speech_model(load_model(str(write_tiny_ctc(tmp_path_factory.mktemp("ctc"), norm="layer"))))


def test_errors_are_counted(speech: SpeechModel, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = speech.reader()
    data = reader.recordings(tuple(reader.of_wave(wave, [5]) for wave in noise_waves(4000, 8000)), ())
    texts = [heard.text for heard in speech.transcribe(data.examples)]
    monkeypatch.setattr(type(data), "texts", (texts[0], f"{texts[1]} more"))

    found = evaluate(speech, data)

    assert list(found.hypotheses) == texts
    assert found.scores.utterances == 2
    assert found.scores.raw_words == ErrorCounts(deletions=1, length=sum(len(text.split()) for text in texts) + 1)


def test_nothing_to_transcribe(tiny_whisper_dir: Path) -> None:
    assert speech_model(load_model(str(tiny_whisper_dir))).transcribe([]) == []


def test_references_must_pair_up_with_recordings(speech: SpeechModel, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = speech.reader()
    data = reader.recordings((reader.of_wave(noise_waves(4000)[0], [5]),), ())
    monkeypatch.setattr(type(speech), "transcribe", lambda self, examples, **_: [Transcript("one"), Transcript("two")])

    with pytest.raises(ValueError, match="zip"):
        evaluate(speech, data)
