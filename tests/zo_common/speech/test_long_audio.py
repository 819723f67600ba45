"""Recordings that are to be recognised: what is read, what is refused, where they are cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from tiny_ctc import noise_waves

from zo_common.speech.audio import AudioProblem, decode, is_silent
from zo_common.speech.conversions import counted
from zo_common.speech.long_audio import find_recordings, read_wave, split

RATE = 16000


def _tone(seconds: float, rate: int = RATE) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def _write(path: Path, wave: np.ndarray, rate: int = RATE, subtype: str | None = None) -> Path:
    sf.write(path, wave, rate, subtype)
    return path


class TestReading:
    def test_samples_at_the_rate_are_taken_as_they_are(self, tmp_path: Path) -> None:
        wave = _tone(0.1)

        found = read_wave(_write(tmp_path / "a.wav", wave, subtype="FLOAT"))

        np.testing.assert_array_equal(found, wave)
        assert found.dtype == np.float32

    def test_a_higher_rate_is_brought_down(self, tmp_path: Path) -> None:
        found = read_wave(_write(tmp_path / "a.flac", _tone(0.5, 48000), 48000))

        assert len(found) == 8000
        np.testing.assert_allclose(found[500:-500], _tone(0.5)[500:-500], atol=2e-3)

    def test_the_checks_are_those_of_training(self, tmp_path: Path) -> None:
        cases = {
            "has no samples": _write(tmp_path / "e.wav", _tone(0)),
            "holds only silence": _write(tmp_path / "s.wav", 0 * _tone(0.5)),
            "cancel each other": _write(tmp_path / "c.wav", np.stack([_tone(0.5), -_tone(0.5)], axis=1)),
            "samples of up to 9.83e\\+03": _write(tmp_path / "l.wav", 32768 * _tone(0.5), subtype="FLOAT"),
            "at least 10": _write(tmp_path / "o.wav", _tone(0.5)[10:11]),
        }
        for message, path in cases.items():
            for reader in (read_wave, decode):
                with pytest.raises(AudioProblem, match=message):
                    reader(path)

    def test_stereo_and_low_rates_are_taken_with_one_note(self, tmp_path: Path) -> None:
        left, right = _tone(0.5, 8000), np.zeros(4000, np.float32)
        stereo = _write(tmp_path / "s.wav", np.stack([_tone(0.5), 0 * _tone(0.5)], axis=1))
        telephone = _write(tmp_path / "t.wav", left, 8000)
        both = _write(tmp_path / "b.wav", np.stack([left, right], axis=1), 8000)

        with counted() as changes:
            np.testing.assert_allclose(read_wave(stereo), _tone(0.5) / 2, atol=1e-4)
            assert len(read_wave(telephone)) == len(read_wave(both)) == 8000
            read_wave(_write(tmp_path / "h.wav", _tone(0.5, 44100), 44100))

        assert changes.note == (
            "recordings resampled to 16 kHz: 2 of 8 kHz (nothing above 4 kHz), 1 of 44.1 kHz; recordings averaged over "
            "channels: 2 of 2"
        )

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"", "has no bytes"),
            (b"RIFFxxxxWAVE", r"cannot be decoded|ends after"),
            (b"\0" * 1000, "cannot be decoded"),
        ],
    )
    def test_what_is_no_audio(self, tmp_path: Path, data: bytes, message: str) -> None:
        (tmp_path / "a.wav").write_bytes(data)

        with pytest.raises(AudioProblem, match=message):
            read_wave(tmp_path / "a.wav")

    @pytest.mark.parametrize("suffix", ["wav", "flac"])
    def test_half_a_file_is_noticed(self, tmp_path: Path, suffix: str) -> None:
        path = _write(tmp_path / f"a.{suffix}", noise_waves(16000)[0])
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

        with pytest.raises(AudioProblem, match=r"ends after \d+ of \d+ bytes|cannot be decoded"):
            read_wave(path)

    def test_a_wav_of_unknown_size_is_read(self, tmp_path: Path) -> None:
        path = _write(tmp_path / "a.wav", _tone(0.1))
        data = bytearray(path.read_bytes())
        data[4:8] = b"\xff" * 4
        path.write_bytes(data)

        assert len(read_wave(path)) == 1600

    def test_too_long_not_finite_or_not_there(self, tmp_path: Path) -> None:
        broken = _write(tmp_path / "n.wav", np.array([0.0, np.nan], np.float32), subtype="FLOAT")

        with pytest.raises(AudioProblem, match=r"lasts 2\.00 s, expected at most 1 s: .*--max-seconds"):
            read_wave(_write(tmp_path / "l.wav", _tone(2)), max_seconds=1.0)
        with pytest.raises(AudioProblem, match="NaN or infinite"):
            read_wave(broken)
        with pytest.raises(AudioProblem, match="cannot be read"):
            read_wave(tmp_path / "none.wav")


def test_silence_is_what_hardly_moves() -> None:
    wave = np.zeros(1000, np.float32)

    assert is_silent(wave)
    assert is_silent(wave[:0])
    assert is_silent(wave + 0.5)
    wave[7] = 9e-5
    assert is_silent(wave)
    wave[7] = -2e-4
    assert not is_silent(wave)


class TestSplitting:
    @pytest.mark.parametrize("seconds", [0.0, 1.0, 30.0])
    def test_up_to_thirty_seconds_stay_whole(self, seconds: float) -> None:
        wave = _tone(seconds)

        assert [piece is wave for piece in split(wave)] == [True]

    @pytest.mark.parametrize("seconds", [30.1, 49.9, 50.1, 75.0, 200.3])
    def test_nothing_is_lost_and_no_piece_is_long_or_short(self, seconds: float) -> None:
        wave = noise_waves(int(seconds * RATE))[0]

        pieces = split(wave)

        np.testing.assert_array_equal(np.concatenate(pieces), wave)
        assert len(pieces) == -(-len(wave) // (25 * RATE))
        assert all(10 * RATE <= len(piece) <= 30 * RATE for piece in pieces)

    def test_it_is_cut_in_the_pause(self) -> None:
        wave = noise_waves(40 * RATE)[0]
        wave[int(18.6 * RATE) : int(18.8 * RATE)] = 0.0

        first, second = split(wave)

        assert 18.6 * RATE <= len(first) <= 18.8 * RATE
        assert len(first) + len(second) == 40 * RATE

    def test_silence_is_cut_in_its_middle(self) -> None:
        assert [len(piece) for piece in split(np.zeros(40 * RATE, np.float32))] == [20 * RATE] * 2


def test_folders_are_searched_in_the_order_of_names(tmp_path: Path) -> None:
    inside = [tmp_path / "d" / name for name in ("a/2.wav", "b.FLAC", "a/1.ogg", "c.txt")]
    for path in inside:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "e").mkdir()

    found, problems = find_recordings([tmp_path / "z.wav", tmp_path / "d", tmp_path / "e"])

    assert found == [tmp_path / "z.wav", inside[2], inside[0], inside[1]]
    assert len(problems) == 1
    assert "e' holds no recording" in problems[0]


def test_a_link_to_nothing_is_not_left_out_without_a_word(tmp_path: Path) -> None:
    (tmp_path / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    (tmp_path / "folder.wav").mkdir()

    found, problems = find_recordings([tmp_path])

    assert (found, problems) == ([tmp_path / "gone.wav"], [])
    with pytest.raises(AudioProblem, match=r"'gone\.wav' cannot be read"):
        read_wave(found[0])


def test_what_a_folder_holds_in_formats_that_are_not_decoded_is_counted(tmp_path: Path) -> None:
    for name in ("a.m4a", "b.webm", "c/d.M4A", "e.w64", "f.sph", "g.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    found, problems = find_recordings([tmp_path])

    assert [path.name for path in found] == ["e.w64", "f.sph"]
    assert len(problems) == 1
    assert problems[0].startswith(f"3 recordings of folder '{tmp_path}' are left out, 2 .m4a, 1 .webm, expected one of")
