"""Transcripts of recordings of any length: which way each goes, and that company changes nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_ctc import RATE, noise_waves

from simulations.models.tiny import write_tiny_whisper
from zo_common.models.load import load_model
from zo_common.speech.audio import AudioProblem
from zo_common.speech.long_audio import split
from zo_common.speech.model_kinds import speech_model
from zo_common.speech.speech_model import SpeechModel
from zo_common.speech.transcripts import transcribe_waves


@pytest.fixture(scope="module")
def ctc(tiny_wav2vec2: Path) -> SpeechModel:
    return speech_model(load_model(str(tiny_wav2vec2)))


@pytest.fixture(scope="module")
def whisper(whisper_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> SpeechModel:
    target = tmp_path_factory.mktemp("whisper")  # whole, as long forms need timestamps
    loaded = load_model(str(write_tiny_whisper(whisper_dir, target, whole_vocabulary=True)))
    loaded.model.generation_config.max_length = 24  # random weights never come to an end
    return speech_model(loaded)


def test_company_changes_nothing_and_order_stays(ctc: SpeechModel) -> None:
    waves = noise_waves(RATE, 33 * RATE, 3 * RATE, 2 * RATE)

    together = transcribe_waves(ctc, waves, batch_size=2)

    assert together == [transcribe_waves(ctc, [wave])[0] for wave in waves]
    assert len(set(together)) == 4


def test_a_long_recording_is_cut_at_pauses_and_joined(ctc: SpeechModel) -> None:
    (wave,) = noise_waves(70 * RATE)
    pieces = split(wave, RATE)

    assert len(pieces) == 3
    assert transcribe_waves(ctc, [wave]) == [" ".join(transcribe_waves(ctc, pieces))]


def test_silence_says_nothing(ctc: SpeechModel) -> None:
    assert transcribe_waves(ctc, [np.zeros(2 * RATE, np.float32)]) == [""]


def test_up_to_a_window_is_as_in_an_evaluation(whisper: SpeechModel) -> None:
    waves = noise_waves(RATE, 30 * RATE)
    reader = whisper.reader(language="en")

    found = transcribe_waves(whisper, waves, language="en")

    assert found == [heard.text for heard in whisper.transcribe([reader.of_wave(wave) for wave in waves])]


def test_more_than_a_window_is_whispers_long_form(whisper: SpeechModel) -> None:
    """Which gives the same again: its sampling has a stream of its own."""
    waves = noise_waves(41 * RATE, RATE)
    told: list[float] = []

    found = transcribe_waves(whisper, waves, on_progress=told.append)

    assert found == transcribe_waves(whisper, waves)
    assert found[1] == transcribe_waves(whisper, waves[1:])[0]
    assert told == sorted(told) and told[-1] == pytest.approx(42.0)


def test_what_is_shorter_than_a_frame_is_refused(ctc: SpeechModel) -> None:
    with pytest.raises(AudioProblem, match=r"has 3 samples, expected at least .* receptive field"):
        transcribe_waves(ctc, [np.full(3, 0.5, np.float32)])
