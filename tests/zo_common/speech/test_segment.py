"""Long recordings cut at pauses: each piece has its own text, or it is left out with a word."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from zo_common.speech.audio import AudioProblem
from zo_common.speech.clip import Clip
from zo_common.speech.matching import Words, agreement, sure_spans
from zo_common.speech.pauses import spoken_parts
from zo_common.speech.segment import Segmenter
from zo_common.speech.speech_model import Transcript
from zo_common.speech.utterance import Manifest, Utterance

RATE = 16_000
SENTENCES = [
    "The cat sat on the old mat.",
    "Please call me back on Monday morning!",
    "My father has twenty-one sheep, and he can't count.",
    "Avoid the bridge (it is closed) and drive on.",
]


def _speech(*seconds: float, pause: float = 1.5, noise: float = 0.0) -> np.ndarray:
    """Noise of so many seconds each, between pauses; loud enough to be speech."""
    rng = np.random.default_rng(0)
    parts = [np.zeros(int(RATE * pause))]
    for each in seconds:
        parts += [0.2 * rng.standard_normal(int(RATE * each)), np.zeros(int(RATE * pause))]
    wave = np.concatenate(parts)
    return (wave + noise * rng.standard_normal(len(wave))).clip(-1, 1).astype(np.float32)


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_speech_is_found_between_pauses(noise: float) -> None:
    found = spoken_parts(_speech(3.0, 0.5, 7.0, noise=noise), RATE)

    assert [(part.start, part.end) for part in found] == [
        (pytest.approx(start, abs=0.03), pytest.approx(end, abs=0.03))
        for start, end in ((1.5, 4.5), (6.0, 6.5), (8.0, 15.0))
    ]
    assert spoken_parts(np.zeros(10, np.float32), RATE) == []


@pytest.mark.parametrize(("language", "text"), [("en", " ".join(SENTENCES)), ("zh", "今天天气很好。我们 去公园！")])
def test_units_are_put_together_as_they_were(language: str, text: str) -> None:
    words = Words(text, language)

    assert words.text(0, len(words)) == text
    middle = len(words) // 2
    assert "".join((words.text(0, middle) + words.text(middle, len(words))).split()) == "".join(text.split())
    assert len(words.tokens) == len(words.ends) and words.ends == sorted(words.ends)


def test_what_is_heard_as_it_is_written_is_sure() -> None:
    said = Words("one two three four five six", "en")
    heard = [Words(text, "en").tokens for text in ("one too", "three for", "", "five six seven")]

    first, last = said.tokens, [token for each in heard for token in each]
    assert agreement(first, last) == 4 / 7
    assert agreement([], []) == 1 and agreement(first, []) == 0
    assert sure_spans(said, heard) == [(0, 1), (2, 3), None, (4, 6)]


class Listener:
    """A stand-in for a model: it is told what it hears in pieces in turn, and a text's loss is how far it is from it.

    Args:
        heard: what is heard in each piece, as the transcript comes out.
        truth: what is said in each piece, which the losses know.
        doubt: nats of a wrong word.
    """

    unit, rate, least = "character", RATE, 400

    def __init__(self, heard: Sequence[str], truth: Sequence[str], doubt: float = 10.0) -> None:
        self.model = SimpleNamespace(parameters=lambda: iter([torch.zeros(1)]))
        self._heard, self._truth, self._doubt = iter(heard), truth, doubt

    def reader(self, **_: Any) -> Any:
        return self

    def of_wave(self, wave: np.ndarray) -> np.ndarray:
        return wave

    def transcribe(self, examples: Sequence[Any], **_: Any) -> list[Transcript]:
        return [Transcript(next(self._heard)) for _ in examples]

    def example(self, utterance: Utterance) -> Any:
        return SimpleNamespace(labels=(1,), text=utterance.text, start=float(utterance.columns["start"]))

    def recordings(self, examples: Any, skipped: Any) -> Any:
        batch = SimpleNamespace(to=lambda device: examples)
        return SimpleNamespace(batch=lambda indices: batch)

    def held_out_losses(self, batch: Any) -> torch.Tensor:
        (example,) = batch
        truth = self._truth[int(example.start // 20)].split()
        said = example.text.split()
        wrong = sum(word not in truth for word in said) + sum(word not in said for word in truth)
        return torch.tensor([self._doubt * wrong])


def _long(folder: Path, *seconds: float) -> Utterance:
    """Pieces of so many seconds, each in a stretch of 20 s of its own."""
    wave = np.concatenate([_speech(each, pause=(20 - each) / 2) for each in seconds])
    soundfile.write(folder / "long.wav", wave, RATE)
    return Utterance("metadata.csv:2", folder / "long.wav", " ".join(SENTENCES[: len(seconds)]), {"speaker": "anna"})


def _segmented(listener: Listener, utterance: Utterance) -> Manifest:
    return _segmenter(listener).segment(Manifest((utterance,)))


def _segmenter(stand_in: Any) -> Segmenter:
    """With the parts of a speech model that segmentation uses."""
    return Segmenter(stand_in)


def test_each_piece_has_its_text_where_words_at_the_edges_are_misheard(tmp_path: Path) -> None:
    truth = SENTENCES[:3]
    heard = [
        "The cat sat on an old",
        "Police call me back on Monday mourning",
        "father has 21 sheep and he cannot count",
    ]
    utterance = _long(tmp_path, 18.0, 18.0, 18.0)

    found = _segmented(Listener(heard, truth), utterance)

    assert [each.text for each in found.utterances] == truth
    assert found.problems == ()
    for each in found.utterances:
        assert each.columns.keys() == {"speaker", "source", "start", "end"}
        assert each.columns["source"] == "long.wav"
        assert isinstance(each.audio, bytes)
        assert soundfile.info(io.BytesIO(each.audio)).duration <= 30


def test_what_is_not_sure_is_left_out_and_listed(tmp_path: Path) -> None:
    heard = [
        "The cat sat on an old",
        "Police call me back on Monday mourning",
        "father has 21 sheep and he cannot count",
    ]
    utterance = _long(tmp_path, 18.0, 18.0, 18.0)

    found = _segmented(Listener(heard, SENTENCES[:3], doubt=0.01), utterance)

    assert found.utterances == ()
    assert len(found.left_out) == 3
    for problem, which in zip(found.problems, ("ends", "begins and ends", "begins"), strict=True):
        assert re.match(r"metadata\.csv:2 at \d+\.\d\d s: got no words that say where the text", problem)
        assert f" {which}, expected some" in problem


def test_other_words_than_are_written(tmp_path: Path) -> None:
    heard = ["The cat sat on the old mat", "please er hm what did you er say Monday morning", "My father has 21 sheep"]
    utterance = _long(tmp_path, 18.0, 18.0, 18.0)

    found = _segmented(Listener(heard, SENTENCES[:3]), utterance)

    assert [each.text for each in found.utterances] == [SENTENCES[0], SENTENCES[2]]
    (problem,) = found.problems
    assert "of the text's words where the model listens, expected 50% and more" in problem


def test_speech_without_a_pause_and_pieces_without_speech(tmp_path: Path) -> None:
    wave = np.concatenate([_speech(10.0), _speech(40.0), _speech(10.0), _speech(25.0)])
    soundfile.write(tmp_path / "long.wav", wave, RATE)
    utterance = Utterance("a:1", tmp_path / "long.wav", "one two three four", {})

    found = _segmented(Listener(["one two", "three four", ""], ["one two", "", "three four"]), utterance)

    assert [each.text for each in found.utterances] == ["one two", "three four"]
    for problem, words in zip(found.problems, ("got 40.0 s of speech without a pause", "got nothing"), strict=True):
        assert words in problem


def test_words_that_may_be_of_a_piece_where_nothing_was_heard_are_nobodys(tmp_path: Path) -> None:
    utterance = _long(tmp_path, 18.0, 18.0, 18.0)

    found = _segmented(Listener([SENTENCES[0], "", SENTENCES[2]], SENTENCES[:3]), utterance)

    assert found.utterances == ()
    assert len(found.left_out) == 3


def test_short_recordings_stay_whole_and_bad_ones_are_listed(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "short.wav", _speech(2.0), RATE)
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    rows = tuple(Utterance(f"a:{n}", tmp_path / f"{name}.wav", "text", {}) for n, name in enumerate(("short", "bad")))

    found = _segmenter(Listener([], [])).segment(Manifest(rows, ("fault.",)))

    (short,) = found.utterances
    assert (short.source, short.text) == (tmp_path / "short.wav", "text")
    assert short.columns == {"source": "short.wav", "start": "0.00", "end": "5.00"}
    assert found.problems[0] == "fault." and found.problems[1].startswith("a:1: 'bad.wav' cannot be decoded")


def test_a_part_of_a_recording_says_where_it_is_in_the_file(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "hour.wav", _speech(18.0, 18.0, 18.0), RATE)
    row = Utterance("a:1", Clip(tmp_path / "hour.wav", 21.0, 39.0), " ".join(SENTENCES[1:3]), {})

    found = _segmented(Listener(SENTENCES[1:3], SENTENCES), row)

    assert [each.text for each in found.utterances] == SENTENCES[1:3]
    assert [each.columns["source"] for each in found.utterances] == ["hour.wav"] * 2
    starts, ends = ([float(each.columns[name]) for each in found.utterances] for name in ("start", "end"))
    assert starts == [pytest.approx(21.0, abs=0.52), pytest.approx(40.5, abs=0.52)]
    assert ends == [pytest.approx(39.0, abs=0.52), pytest.approx(58.5, abs=1.55)]


def test_a_recording_that_is_too_long_points_at_the_command(tmp_path: Path) -> None:
    from zo_common.speech.audio import decode

    soundfile.write(tmp_path / "long.wav", _speech(31.0), RATE)
    with pytest.raises(
        AudioProblem, match=r"lasts 34.00 s, expected at most 30 s: cut it by 'zo-asr data segment', or"
    ):
        decode(tmp_path / "long.wav")
