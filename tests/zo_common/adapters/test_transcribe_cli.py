"""`zo-asr transcribe` as a user meets it: a line a recording, with a ledger and without."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soundfile
from called import Call, caller
from dialects import dialect_of
from tiny_ctc import RATE, noise_waves
from tiny_models import write_mms

from zo_common.adapters import transcribe_cli
from zo_common.adapters.adapted import load_adapted
from zo_common.ledger.file import LEDGER_NAME, write_ledger
from zo_common.models.load import load_model
from zo_common.speech.model_kinds import speech_model
from zo_common.speech.transcripts import transcribe_waves


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs the command: exit status, stdout, stderr."""
    return caller("zo-asr-transcribe", transcribe_cli.main, monkeypatch, capsys)


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    """Three recordings that differ in length and format."""
    folder = tmp_path / "talks"
    folder.mkdir()
    for name, wave in zip(("a.wav", "b.flac", "c.ogg"), noise_waves(RATE, 2 * RATE, 35 * RATE), strict=True):
        soundfile.write(folder / name, wave, RATE)
    return folder


@pytest.fixture
def run(tiny_wav2vec2: Path, tmp_path: Path) -> Path:
    """The folder of a run that moved the model far enough to be heard."""
    base = load_model(str(tiny_wav2vec2)).model
    ledger = dialect_of(
        base, 1, pattern="*feature_projection*", scale="unit-wide", size=0.02, model=str(tiny_wav2vec2), language="en"
    )
    folder = tmp_path / "run"
    folder.mkdir()
    write_ledger(folder / LEDGER_NAME, ledger)
    return folder


def texts(out: str) -> dict[str, str]:
    return dict(line.split(": ", 1) if ": " in line else (line[:-1], "") for line in out.splitlines())


def test_the_adapter_of_the_language_transcribes(call: Call, talks: Path, tmp_path: Path) -> None:
    mms = write_mms(tmp_path / "mms")
    (wave,) = noise_waves(RATE)
    wanted = {
        code: transcribe_waves(speech_model(load_model(str(mms), language=code)), [wave])[0] for code in ("eng", "fra")
    }
    assert wanted["eng"] != wanted["fra"]
    soundfile.write(talks / "one.wav", wave, RATE, subtype="FLOAT")

    for code, text in wanted.items():
        status, out, err = call("--model", mms, talks / "one.wav", "--language", code, "--json")
        assert (status, err, json.loads(out)["text"]) == (0, "", text)


def test_a_line_a_recording_in_order(call: Call, talks: Path, tiny_wav2vec2: Path) -> None:
    status, out, err = call("--model", tiny_wav2vec2, talks / "b.flac", talks, "--batch-size", 2)

    assert (status, err) == (0, "")
    assert [line.split(":")[0] for line in out.splitlines()] == [
        str(talks / name) for name in ("b.flac", "a.wav", "b.flac", "c.ogg")
    ]
    assert len(set(texts(out).values())) == 3


def test_a_ledger_brings_its_model_and_changes_what_is_heard(
    call: Call, talks: Path, run: Path, tiny_wav2vec2: Path
) -> None:
    _, base, _ = call("--model", tiny_wav2vec2, talks)
    status, out, err = call("--ledger", run, talks)

    assert (status, err) == (0, "")
    assert out != base
    wave, _ = soundfile.read(talks / "b.flac", dtype="float32")
    speech = speech_model(load_adapted(tiny_wav2vec2, run, device="cpu").loaded)
    assert texts(out)[str(talks / "b.flac")] == transcribe_waves(speech, [wave])[0]


def test_for_programs(call: Call, talks: Path, run: Path) -> None:
    status, out, _ = call("--ledger", run / LEDGER_NAME, talks, "--json")

    found = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert [(Path(one["file"]).name, one["seconds"], one["language"]) for one in found] == [
        ("a.wav", 1.0, "en"), ("b.flac", 2.0, "en"), ("c.ogg", 35.0, "en")
    ]  # fmt: skip


def test_a_bad_recording_does_not_stop_the_others(call: Call, talks: Path, tiny_wav2vec2: Path) -> None:
    (talks / "b.flac").write_bytes(b"no audio at all")
    soundfile.write(talks / "d.wav", noise_waves(200)[0], RATE)
    (talks / "e.m4a").write_bytes(b"x")

    status, out, err = call("--model", tiny_wav2vec2, talks)

    assert status == 1
    assert [Path(line.split(":")[0]).name for line in out.splitlines()] == ["a.wav", "c.ogg"]
    lines = err.splitlines()
    assert "1 recordings of folder" in lines[0] and "ffmpeg" in lines[0]
    assert "'b.flac' cannot be decoded" in lines[1]
    assert "'d.wav' has 200 samples, expected at least" in lines[2]
    assert lines[3] == "error: 3 of 5 could not be used, see above"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "neither --model nor --ledger is given"),
        (["--ledger", "/nowhere"], "there is no ledger '/nowhere'"),
        (["--model", "x", "--max-seconds", "nan"], "max-seconds is nan"),
    ],
)
def test_what_is_refused_is_one_sentence(call: Call, talks: Path, words: list[str], said: str) -> None:
    status, out, err = call(talks, *words)

    assert (status, out) == (1, "")
    assert said in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("threads", ["-1", "4097"])
def test_threads_out_of_range_are_refused(call: Call, talks: Path, threads: str) -> None:
    status, out, err = call(talks, "--model", "x", "--torch-threads", threads)

    assert (status, out) == (2, "")
    assert "not in the range" in err


def test_recordings_that_are_not_there_are_told_before_a_model_is_loaded(call: Call, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    status, _, err = call("--model", "/none", "/nowhere.wav")
    assert (status, err) == (1, "error: there is no recording '/nowhere.wav', expected an audio file: name one\n")
    status, _, err = call("--model", "/none", tmp_path / "empty")
    assert status == 1 and "holds no recording" in err and len(err.splitlines()) == 1


def test_a_ledger_of_another_base_is_refused(call: Call, talks: Path, run: Path, tiny_whisper: Path) -> None:
    status, out, err = call(talks, "--model", tiny_whisper, "--ledger", run)

    assert (status, out) == (1, "")
    assert "fingerprint is" in err and "load that model" in err and len(err.splitlines()) == 1
