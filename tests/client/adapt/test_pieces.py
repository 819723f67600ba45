"""What is heard of pieces, and how they share forward passes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_ctc import NORMS, noise_waves, write_tiny_ctc

from client.adapt.adapter import Adapter, AdaptSettings, settings_of
from client.adapt.pieces import episode, groups, listen
from zo_common.errors import ConfigError
from zo_common.models.ctc.loss import AdaptationLoss, ctc_batch
from zo_common.models.load import LoadedModel, load_model
from zo_common.models.whisper.transcribe import transcribe
from zo_common.speech.long_audio import split
from zo_common.speech.loss_settings import LossSettings
from zo_common.speech.model_kinds import speech_model
from zo_common.speech.speech_model import Transcript


@pytest.fixture(scope="module")
def whisper(tiny_whisper: Path) -> LoadedModel:
    return load_model(str(tiny_whisper))


@pytest.fixture
def few_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random Whisper talks until it is stopped."""
    monkeypatch.setattr("zo_common.models.whisper.transcribe.MAX_NEW_TOKENS", 8)


class TestGroups:
    def _sizes(self, seconds: list[int], padded: bool) -> list[int]:
        pieces = [(np.zeros(n * 16000, np.float32), Transcript("")) for n in seconds]
        return [len(group) for group in groups(pieces, 16000, padded)]

    def test_equal_lengths_share_a_pass_up_to_a_minute(self) -> None:
        assert self._sizes([20] * 7, padded=False) == [3, 3, 1]

    def test_lengths_that_differ_share_one_where_padding_is_not_heard(self) -> None:
        assert self._sizes([10, 10, 20, 5, 30], padded=False) == [2, 1, 1, 1]
        assert self._sizes([10, 10, 20, 5, 30], padded=True) == [3, 2]


@pytest.mark.parametrize("norm", NORMS)
def test_the_loss_of_pieces_is_that_of_each(norm: str, tmp_path: Path) -> None:
    loaded = load_model(str(write_tiny_ctc(tmp_path / "m", norm=norm)))
    speech, settings = speech_model(loaded), LossSettings("suta")
    reader = speech.reader()
    pieces = noise_waves(4000, 4000, 2500)
    extractor = loaded.processor.feature_extractor

    with torch.inference_mode():
        heard = listen(speech, reader, pieces, "en")
        together = episode(speech, reader, list(zip(pieces, heard, strict=True)), (), settings, "float32")()()
        alone = [AdaptationLoss(loaded.model, ctc_batch(extractor, [piece])).freeze()() for piece in pieces]

    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


class TestWhisper:
    def test_it_hears_what_transcribe_hears(self, whisper: LoadedModel, few_words: None) -> None:
        speech = speech_model(whisper)
        waves = noise_waves(8000, 16000)
        extractor = whisper.processor.feature_extractor
        windows = [extractor(wave, sampling_rate=16000, return_tensors="pt").input_features[0] for wave in waves]

        heard = listen(speech, speech.reader(), waves, "en")

        assert [h.text for h in heard] == transcribe(whisper.model, whisper.processor, windows)
        assert all(0 < len(h.tokens) <= 8 for h in heard)
        assert (speech.rate, speech.least) == (16000, 400)

    @pytest.mark.parametrize("objective", ["entropy", "self-training"])
    def test_an_episode_and_its_replay(
        self, whisper: LoadedModel, tiny_whisper: Path, few_words: None, objective: str
    ) -> None:
        settings = AdaptSettings(
            4, 2, learning_rate=3e-2, objective=objective, layout="float16", trained_tensors="norms"
        )
        adapter = Adapter(whisper, settings)
        wave = noise_waves(16000)[0]

        result = adapter.adapt(wave)

        assert result.record.steps == 4
        assert len(set(result.objectives)) == 4
        assert adapter.state.checksum() == adapter.base_checksum != result.reached
        elsewhere = Adapter(load_model(str(tiny_whisper)), settings_of(adapter.file_of(result)))
        assert elsewhere.replay(adapter.file_of(result), [wave]) == [result.after]

    def test_beyond_thirty_seconds_there_are_more_windows(self, whisper: LoadedModel, few_words: None) -> None:
        adapter = Adapter(whisper, AdaptSettings(1, 2))
        wave = noise_waves(40 * 16000)[0]

        result = adapter.adapt(wave)

        speech = speech_model(whisper)
        heard = listen(speech, speech.reader(), split(wave), "en")
        assert [bool(h.text) for h in heard] == [True, True]
        assert result.before == " ".join(h.text for h in heard)
        assert result.record.steps == 1

    def test_what_it_hears_as_silence_is_left_alone(
        self, whisper: LoadedModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("zo_common.speech.whisper_model.greedy", lambda *_, **__: [("", [])])
        adapter = Adapter(whisper, AdaptSettings(1, 2))

        result = adapter.adapt(noise_waves(8000)[0])

        assert (result.before, result.after, result.note) == ("", "", "the transcript is empty")
        assert result.record.steps == 0

    def test_objectives_and_languages_it_lacks(self, whisper: LoadedModel) -> None:
        with pytest.raises(
            ConfigError, match="objective is 'suta', a Whisper model adapts by one of: entropy, self-tr"
        ):
            Adapter(whisper, AdaptSettings(objective="suta"))
        with pytest.raises(ConfigError, match="English-only"):
            Adapter(whisper, AdaptSettings(language="de"))
