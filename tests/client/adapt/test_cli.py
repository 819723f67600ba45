"""`zo-asr-adapt` as a user meets it: what it prints, what it stores, what it refuses and that the others go on."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from called import Call, caller
from tiny_ctc import noise_waves, write_tiny_ctc

from client.adapt import cli as adapt_cli
from client.adapt.adapter import Adapter
from client.adapt.file import read_file
from zo_common.errors import LatticeOverflow

QUICK = ("--steps", "3", "--queries", "2", "--learning-rate", "0.1", "--trained-tensors", "norms")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_ctc(tmp_path_factory.mktemp("models") / "ctc")


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    """Two recordings and their texts."""
    folder = tmp_path / "speech"
    folder.mkdir()
    for name, wave in zip(("a.wav", "b.flac"), noise_waves(16000, 9000), strict=True):
        sf.write(folder / name, wave, 16000)
    (folder / "metadata.csv").write_text("file_name,transcription\na.wav,hello world\nb.flac,good night\n")
    return folder


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs the command: exit status, stdout, stderr."""
    return caller("zo-asr-adapt", adapt_cli.main, monkeypatch, capsys)


def _lines(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_transcripts_before_and_after(call: Call, speech: Path, model: Path) -> None:
    status, out, err = call(speech / "a.wav", "--model", model, *QUICK)

    lines = out.splitlines()
    assert (status, err) == (0, "")
    assert lines[0] == str(speech / "a.wav")
    assert [line.split()[0] for line in lines[1:3]] == ["before", "after"]
    assert lines[1].split()[1:] != lines[2].split()[1:]
    assert lines[3].startswith("  3 steps, objective 1.")


def test_stored_adaptations_are_replayed(call: Call, speech: Path, model: Path, tmp_path: Path) -> None:
    records = tmp_path / "records"
    _, out, _ = call("adapt", speech, "--model", model, *QUICK, "--records", records, "--layout", "sign", "--json")
    adapted = _lines(out)

    assert [Path(line["record"]).name for line in adapted] == ["0001-a.zta", "0002-b.zta"]
    for line in adapted:
        status, out, _ = call("replay", line["record"], line["file"], "--model", model, "--json")
        assert status == 0
        assert _lines(out) == [{"file": line["file"], "after": line["after"]}]
        assert line["after"] != line["before"]
    assert Path(adapted[0]["record"]).stat().st_size < 150


def test_replayed_for_people(call: Call, speech: Path, model: Path, tmp_path: Path) -> None:
    _, out, _ = call(speech / "a.wav", "--model", model, *QUICK, "--records", tmp_path / "r", "--json")

    status, text, _ = call("replay", tmp_path / "r" / "0001-a.zta", speech / "a.wav", "--model", model)

    assert (status, text) == (0, f"{speech / 'a.wav'}\n  after   {_lines(out)[0]['after']}\n")


def test_word_error_rates_before_and_after(call: Call, speech: Path, model: Path, tmp_path: Path) -> None:
    sf.write(tmp_path / "c.wav", noise_waves(5000)[0], 16000)

    status, out, _ = call(speech, tmp_path / "c.wav", "--model", model, *QUICK, "--reference", speech / "metadata.csv")

    assert status == 0
    assert "  spoken  hello world" in out
    assert out.splitlines()[-1].startswith("WER 100.0% → 100.0%, raw WER 100.0% → 100.0%, CER ")
    assert "over 2 utterances, 1 without a reference (Whisper's English normaliser)" in out


def test_references_are_known_by_name_elsewhere(call: Call, speech: Path, model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / "a.wav"
    copy.parent.mkdir()
    copy.write_bytes((speech / "a.wav").read_bytes())

    _, out, _ = call(copy, "--model", model, *QUICK, "--reference", speech, "--json")

    assert _lines(out)[0]["reference"] == "hello world"
    rates = _lines(out)[1]
    assert (rates["utterances"], rates["headline"], rates["normalizer"]) == (1, "wer", "Whisper's English normaliser")
    assert {f"{name}_{when}" for name in ("wer", "cer", "raw_wer", "raw_cer") for when in ("before", "after")} < set(
        rates
    )


def test_a_language_without_spaces_is_told_by_its_characters(call: Call, speech: Path, model: Path) -> None:
    (speech / "metadata.csv").write_text("file_name,transcription\na.wav,今天天气很好\nb.flac,再见\n", encoding="utf-8")

    _, out, _ = call(speech, "--model", model, *QUICK, "--reference", speech, "--language", "zh")

    assert "  spoken  今天天气很好" in out
    assert out.splitlines()[-1].startswith("CER ")
    assert "(Whisper's basic normaliser, marks kept)" in out


def test_bad_recordings_get_a_sentence_each_and_the_others_go_on(
    call: Call, speech: Path, model: Path, tmp_path: Path
) -> None:
    wave = noise_waves(4000)[0]
    sf.write(speech / "stereo.wav", np.stack([wave, wave], axis=1), 16000)
    sf.write(speech / "telephone.wav", wave, 8000)
    sf.write(speech / "short.wav", wave[:300], 16000)
    sf.write(speech / "empty.wav", wave[:0], 16000)
    sf.write(speech / "silent.wav", 0 * wave, 16000)
    sf.write(speech / "loud.wav", 1e30 * wave, 16000, subtype="FLOAT")
    (speech / "corrupt.wav").write_bytes(b"\0" * 500)
    (tmp_path / "nothing").mkdir()

    status, out, err = call(speech, "gone.wav", tmp_path / "nothing", "--model", model, *QUICK, "--json")

    adapted = {Path(line["file"]).name: line for line in _lines(out)}
    assert status == 1
    assert set(adapted) == {"a.wav", "b.flac", "stereo.wav", "telephone.wav"}
    sentences = err.splitlines()
    for name, word in {
        "empty.wav": "has no samples",
        "silent.wav": "holds only silence",
        "short.wav": "has 300 samples, expected at least 400",
        "loud.wav": ", expected −1 … 1",
        "corrupt.wav": "cannot be decoded",
        "gone.wav": "cannot be read",
        "nothing": "holds no recording",
    }.items():
        assert [word in line for line in sentences if f"{name}'" in line] == [True], name
    assert sentences[-1] == "error: 7 of 11 could not be used, see above"
    assert sentences[-2] == (
        "note: recordings resampled to 16 kHz: 1 of 8 kHz (nothing above 4 kHz); recordings averaged over channels: "
        "1 of 2"
    )
    assert len(sentences) == 9


def test_telephone_speech_is_taken_with_a_note(call: Call, model: Path, tmp_path: Path) -> None:
    wave = noise_waves(4000)[0]
    sf.write(tmp_path / "both.wav", np.stack([wave, wave], axis=1), 8000)

    status, out, err = call(tmp_path / "both.wav", "--model", model, *QUICK, "--json")

    assert (status, err.count("\n")) == (0, 1)
    assert err.startswith("note: recordings resampled to 16 kHz: 1 of 8 kHz")
    assert _lines(out)[0]["steps"] == 3


def test_a_failing_adaptation_does_not_stop_the_others(
    call: Call, speech: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Adapter._steps

    def overflow(self: Adapter, utterances: Any, *rest: Any) -> Any:
        if len(utterances[0].pieces[0]) == 16000:
            raise LatticeOverflow("tensor 'x' would leave its lattice: lower the learning rate")
        return steps(self, utterances, *rest)

    monkeypatch.setattr(Adapter, "_steps", overflow)
    status, out, err = call(speech, "--model", model, *QUICK, "--json")

    assert status == 1
    assert [Path(line["file"]).name for line in _lines(out)] == ["b.flac"]
    assert err.splitlines()[0] == "error: 'a.wav': tensor 'x' would leave its lattice: lower the learning rate"


def test_models_that_cannot_be_adapted(call: Call, speech: Path, tmp_path: Path) -> None:
    headless = write_tiny_ctc(tmp_path / "headless")
    config = json.loads((headless / "config.json").read_text())
    (headless / "config.json").write_text(json.dumps(config | {"architectures": ["Wav2Vec2Model"]}))
    wordless = write_tiny_ctc(tmp_path / "wordless")
    vocabulary = json.loads((wordless / "vocab.json").read_text())
    (wordless / "vocab.json").write_text(json.dumps(dict(list(vocabulary.items())[:10])))

    for model, word in ((headless, "has no CTC head"), (wordless, "tokenizer does not know"), ("gone/m", "neither")):
        status, out, err = call(speech, "--model", model, *QUICK)
        assert (status, out, len(err.splitlines())) == (1, "", 1)
        assert word in err


def test_continual_adaptation_replays_from_its_folder(call: Call, speech: Path, model: Path, tmp_path: Path) -> None:
    sf.write(speech / "c.wav", noise_waves(8000)[0], 16000)
    records = tmp_path / "r"
    _, alone, _ = call(speech, "--model", model, "--steps", "0", "--json")

    status, out, _ = call(
        speech, "--model", model, *QUICK, "--continual", "--max-drift", "9", "--records", records, "--json"
    )

    adapted = _lines(out)
    assert status == 0
    assert [line["before"] for line in adapted] == [line["before"] for line in _lines(alone)]
    assert len(read_file(records / "0003-c.zta").made_of) == 3
    for line in adapted:
        _, again, _ = call("replay", line["record"], line["file"], "--model", model, "--json")
        assert _lines(again)[0]["after"] == line["after"]
    (records / "0001-a.zta").unlink()
    status, _, err = call("replay", records / "0003-c.zta", speech / "c.wav", "--model", model)
    assert (status, len(err.splitlines())) == (1, 1)
    assert "1 of the 3 adaptations that this one is made of are not beside it" in err


def test_the_guard_goes_back_to_the_base(call: Call, speech: Path, model: Path) -> None:
    status, out, _ = call(speech, "--model", model, *QUICK, "--continual", "--max-drift", "1e-6", "--json")

    assert status == 0
    for line in _lines(out):
        assert (line["kept"], line["before"]) == (False, line["after"])


def test_recordings_together(call: Call, speech: Path, model: Path, tmp_path: Path) -> None:
    status, out, _ = call(speech, "--model", model, *QUICK, "--batch", "2", "--records", tmp_path / "r", "--json")

    first, second = _lines(out)
    assert status == 0
    assert (first["record"], first["objectives"]) == (second["record"], second["objectives"])
    _, again, _ = call("replay", first["record"], speech, "--model", model, "--json")
    assert [line["after"] for line in _lines(again)] == [first["after"], second["after"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--batch", "0"), "batch is 0, expected 1 or more"),
        (("--anchor", "0.1"), "anchor is 0.1, but each recording starts from the base: add --continual"),
        (("--max-drift", "1"), "max-drift is 1.0, but"),
        (("--continual", "--anchor", "1"), "anchor is 1.0, expected a share"),
        (("--continual", "--max-drift", "0"), "max-drift is 0.0, expected a positive share"),
        (("--layout", "int8"), "layout is 'int8'"),
        (("--objective", "self-training"), "a CTC model adapts by one of"),
        (("--reference", "texts.csv"), "reference is 'texts.csv', expected a table or a folder"),
        (("--text-column", "said", "--reference", "{speech}"), "text column 'said' not found"),
        (("--device", "abacus"), "device 'abacus' cannot be used"),
        (("--max-seconds", "nan"), "max-seconds is nan, expected a positive number"),
        (("--max-seconds", "inf"), "max-seconds is inf, expected a positive number"),
    ],
)
def test_settings_that_do_not_fit(
    call: Call, speech: Path, model: Path, options: tuple[str, ...], message: str
) -> None:
    status, out, err = call(speech, "--model", model, *(option.format(speech=speech) for option in options))

    assert (status, out) == (1, "")
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("threads", ["-1", "4097"])
def test_threads_out_of_range_are_refused(call: Call, speech: Path, model: Path, threads: str) -> None:
    status, out, err = call(speech, "--model", model, "--torch-threads", threads)

    assert (status, out) == (2, "")
    assert "not in the range" in err


def test_records_of_long_names_and_those_that_cannot_be_written(
    call: Call, speech: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (speech / "a.wav").rename(speech / f"{'ä' * 120}.wav")
    status, _, _ = call(speech, "--model", model, *QUICK, "--records", tmp_path / "records")
    assert (status, len(list((tmp_path / "records").glob("*.zta")))) == (0, 2)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("client.adapt.run.write_file", full)
    status, out, err = call(speech, "--model", model, *QUICK, "--records", tmp_path / "more", "--json")
    assert (status, len(_lines(out))) == (1, 2)
    assert err.count("cannot be written (No space left on device): make room in") == 2


def test_records_are_not_mixed(call: Call, speech: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "old.zta").touch()

    status, _, err = call(speech, "--model", model, "--records", tmp_path)

    assert (status, "holds records of another run" in err) == (1, True)
    status, _, err = call("replay", tmp_path / "old.zta", speech, "--model", model)
    assert (status, "is no record of an adaptation" in err) == (1, True)
