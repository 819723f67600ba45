"""Decoding to 16 kHz mono, and every recording that cannot teach."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from zo_common.speech.audio import AudioProblem, decode

RATE = 16_000


def tone(seconds: float, rate: int = RATE, hertz: float = 440.0) -> np.ndarray[Any, np.dtype[np.float64]]:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def test_16_khz_mono_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    wave = tone(0.5).astype(np.float32)
    soundfile.write(path, wave, RATE, subtype="FLOAT")
    for audio in (path, path.read_bytes()):
        decoded = decode(audio)
        assert decoded.dtype == np.float32
        np.testing.assert_array_equal(decoded, wave)


@pytest.mark.parametrize("suffix", ["flac", "ogg", "mp3"])
def test_other_formats(tmp_path: Path, suffix: str) -> None:
    soundfile.write(tmp_path / f"a.{suffix}", tone(1.0), RATE)
    decoded = decode(tmp_path / f"a.{suffix}")
    assert abs(len(decoded) - RATE) < 0.1 * RATE
    assert 0.2 < np.abs(decoded).max() < 0.8


def test_stereo_is_the_mean_of_its_channels(tmp_path: Path) -> None:
    left, right = tone(0.25), tone(0.25, hertz=600)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), RATE, subtype="FLOAT")
    np.testing.assert_allclose(decode(tmp_path / "a.wav"), (left + right) / 2, atol=1e-7)


@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_resampling(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "a.wav", tone(1.0, rate), rate, subtype="FLOAT")
    decoded = decode(tmp_path / "a.wav")
    assert len(decoded) == RATE
    # Away from the ends, where the filter sees the cut.
    np.testing.assert_allclose(decoded[1000:-1000], tone(1.0)[1000:-1000], atol=2e-3)


@pytest.mark.parametrize("rate", [RATE, 8_000, 44_100])
def test_30_seconds_are_allowed(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "a.wav", tone(30.0, rate), rate)
    assert len(decode(tmp_path / "a.wav")) == 30 * RATE
    soundfile.write(tmp_path / "b.wav", np.append(tone(30.0, rate), 0.1), rate)
    with pytest.raises(AudioProblem, match=r"^'b\.wav' lasts 30\.00 s, expected at most 30 s"):
        decode(tmp_path / "b.wav")


def problem(audio: Path | bytes) -> str:
    with pytest.raises(AudioProblem) as caught:
        decode(audio)
    text = str(caught.value)
    assert text.endswith(".")
    assert "\n" not in text
    return text


def test_recordings_that_cannot_teach(tmp_path: Path) -> None:
    def wav(samples: Any, subtype: str = "PCM_16") -> Path:
        soundfile.write(tmp_path / "x.wav", np.asarray(samples, dtype=np.float64), RATE, subtype=subtype)
        return tmp_path / "x.wav"

    assert problem(wav([])).startswith("'x.wav' has no samples")
    assert problem(wav(np.zeros(800))).startswith("'x.wav' holds only silence")
    stereo = np.stack([tone(0.1), -tone(0.1)], axis=1)
    assert problem(wav(stereo, "FLOAT")).startswith("'x.wav' has 2 channels that cancel each other")
    assert problem(wav([0.1])).startswith("'x.wav' lasts 0.062 ms, expected at least 10")
    assert problem(wav(32768 * tone(0.1), "FLOAT")).startswith("'x.wav' has samples of up to 1.64e+04, expected −1 … 1")
    whole = wav(tone(0.1)).read_bytes()
    cut = tmp_path / "cut.wav"
    cut.write_bytes(whole[: len(whole) // 3])
    assert problem(cut).startswith(f"'cut.wav' ends after {len(whole) // 3} of {len(whole)} bytes, expected all")
    assert problem(wav([0.1, np.nan, 0.2], "FLOAT")).startswith("'x.wav' has NaN or infinite samples")
    assert problem(wav([0.1, np.inf, 0.2], "FLOAT")).startswith("'x.wav' has NaN or infinite samples")
    assert problem(wav(tone(31.5))).startswith("'x.wav' lasts 31.50 s")
    assert problem(b"").startswith("the recording has no bytes")
    assert problem(b"not audio at all" * 10).startswith("the recording cannot be decoded (")
    (tmp_path / "y.raw").write_bytes(b"\1\2" * 100)
    assert problem(tmp_path / "y.raw").startswith("'y.raw' cannot be decoded (")
    assert problem(tmp_path / "gone.wav").startswith("'gone.wav' cannot be read (No such file")
    assert problem(wav(tone(0.1)).read_bytes()[:20]).startswith("the recording ends after 20 of 3244 bytes, ")
