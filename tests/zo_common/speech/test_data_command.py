"""`zo-asr data` as a user meets it: what it prints, what it writes, how it ends."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from called import Call, caller

from zo_common.speech import cli
from zo_common.speech.manifest import read_manifest

RATE = 16_000


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs the command: exit status, stdout, stderr."""
    return caller("zo-asr-data", cli.main, monkeypatch, capsys)


def tone(seconds: float, rate: int = RATE) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    """Two speakers, one of whose recordings is at 8 kHz, and one who has none that can be used."""
    folder = tmp_path / "speech" / "train"
    folder.mkdir(parents=True)
    soundfile.write(folder / "a.wav", tone(1.0), RATE)
    soundfile.write(folder / "b.flac", tone(2.0, 8000), 8000)
    soundfile.write(folder / "c.wav", 0 * tone(1.0), RATE)
    (folder / "d.m4a").write_bytes(b"x")
    rows = ["a.wav,Привет мир,anna", "b.flac,two,bert", "c.wav,three,carl", "gone.wav,four,carl"]
    (folder / "metadata.csv").write_text("\n".join(["file_name,transcription,speaker", *rows]))
    return tmp_path / "speech"


def test_what_would_be_trained_on(call: Call, speech: Path) -> None:
    status, out, err = call("check", speech)

    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "train (audiofolder): 2 recordings, 0.1 min",
        "  speaker: 3, 0.0 … 0.0 min each (anna, bert, carl)",
        "  speaker without a usable recording: 1 (carl)",
        "  lengths: 1.0 … 2.0 s, median 1.5 s",
        "  scripts: Cyrillic 75.0%, Latin 25.0%",
        "  recordings resampled to 16 kHz: 1 of 8 kHz (nothing above 4 kHz)",
        "  1 recordings in the folder are in no usable row: 1 .m4a",
        "  2 cannot be used:",
        "    train/metadata.csv:5: got file_name 'gone.wav', expected a file that exists: correct the name or delete "
        "the row.",
        "    train/metadata.csv:4: 'c.wav' holds only silence, expected speech: record it again or leave it out.",
    ]


def test_for_programs(call: Call, speech: Path) -> None:
    status, out, _ = call("check", speech, "--json")

    (found,) = json.loads(out)["splits"]
    assert status == 0
    assert (found["split"], found["utterances"], found["minutes"]) == ("train", 2, 0.05)
    assert found["speakers"] == {"anna": 1 / 60, "bert": 2 / 60, "carl": 0.0}
    assert found["lengths"] == {"shortest": 1.0, "median": 1.5, "longest": 2.0}
    assert len(found["problems"]) == 2


def test_nothing_usable_is_status_1(call: Call, speech: Path, tmp_path: Path) -> None:
    for name in ("a.wav", "b.flac"):
        (speech / "train" / name).write_bytes(b"")

    status, out, _ = call("check", speech, "--problems", 1)

    assert status == 1
    assert out.splitlines()[0] == "train (audiofolder): 0 recordings, 0.0 min"
    assert out.splitlines()[-1] == "    … and 3 more: --problems 0 prints all"
    status, _, err = call("check", tmp_path / "nowhere")
    assert status == 1
    assert "is not there, expected a folder with metadata.csv" in err


def test_no_model_is_loaded(speech: Path) -> None:
    import subprocess

    code = (
        "import sys; from zo_common.speech.cli import app\n"
        f"app(['check', {str(speech)!r}], standalone_mode=False)\n"
        "print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert done.stdout.splitlines()[-1] == "[]"


def test_converted_is_read_as_the_source_was(call: Call, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.wav", tone(40.0), RATE)
    rows = [
        {"audio_filepath": "long.wav", "text": "one, two", "offset": 1.0, "duration": 2.0, "speaker": "x"},
        {"audio_filepath": "long.wav", "text": "three", "offset": 30.0, "duration": 1.5, "speaker": "y"},
    ]
    (tmp_path / "train_manifest.json").write_text("\n".join(map(json.dumps, rows)))

    status, out, err = call("convert", tmp_path, tmp_path / "out")

    assert (status, out, err) == (0, f"{tmp_path / 'out' / 'train'}: 2 recordings\n", "")
    source, made = read_manifest(str(tmp_path), split="train"), read_manifest(str(tmp_path / "out"), split="train")
    assert made.problems == ()
    for before, after in zip(source.utterances, made.utterances, strict=True):
        assert (after.text, after.columns["speaker"]) == (before.text, before.columns["speaker"])
        assert after.audio.read_bytes() == before.audio


def test_a_conversion_is_whole_or_not_at_all(call: Call, speech: Path, tmp_path: Path) -> None:
    status, _, err = call("convert", speech, tmp_path / "out")
    assert (status, err.splitlines()[0]) == (1, "error: 2 problems in the data:")
    assert not (tmp_path / "out").exists()

    status, out, _ = call("convert", speech, tmp_path / "out", "--skip-bad")
    assert (status, out) == (0, f"{tmp_path / 'out' / 'train'}: 2 recordings, 2 left out\n")
    status, _, err = call("convert", speech, tmp_path / "out")
    assert status == 1
    assert "is there already, expected a new or an empty folder" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "speech"]
