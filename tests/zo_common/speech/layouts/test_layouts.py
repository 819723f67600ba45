"""Every layout of docs/data.md is read as it is: recordings, texts, speakers, splits, and faults with file and line."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import soundfile
from pyarrow import parquet

from zo_common.errors import DataError
from zo_common.speech.audio import AudioProblem, decode
from zo_common.speech.manifest import Manifest, read_manifest
from zo_common.speech.splits import splits_of
from zo_common.speech.stamp import stamp

RATE = 16_000


def ramp(seconds: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A wave whose samples say where they are from; 16 bits hold them exactly."""
    return ((np.arange(round(seconds * RATE)) % 30_000 + 1) / 32_768).astype(np.float32)


def record(path: Path, seconds: float = 0.5) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, ramp(seconds), RATE)
    return path


def read(source: Path, split: str | None = "train", **options: Any) -> Manifest:
    return read_manifest(str(source), split=split, **options)


def rows(manifest: Manifest) -> list[tuple[str, str, str]]:
    assert manifest.problems == ()
    return [(u.where, u.text, u.columns.get("speaker", "")) for u in manifest.utterances]


def test_common_voice(tmp_path: Path) -> None:
    record(tmp_path / "clips" / "a.flac")
    soundfile.write(tmp_path / "clips" / "b.mp3", ramp(0.5), RATE)
    header = "client_id\tpath\tsentence\tage\taccents\tlocale\n"
    lines = 'x1\ta.flac\t"Stop", he said.\t\tScottish English\ten\nx2\tb\tGo on.\ttwenties\t\ten\n'
    (tmp_path / "train.tsv").write_text(header + lines)
    (tmp_path / "test.tsv").write_text(header + 'x3\ta.flac\t"He said ""no""."\t\t\ten\nx4\tgone.mp3\tGone\t\t\ten\n')
    (tmp_path / "reported.tsv").write_text("sentence_id\tsentence\treason\n1\tx\ty\n")

    found = read(tmp_path)

    assert [text for _, text, _ in rows(found)] == ['"Stop", he said.', "Go on."]
    assert found.utterances[0].where == f"{tmp_path.name}/train.tsv:2"
    assert found.utterances[0].columns["accents"] == "Scottish English"
    assert [(u.columns["client_id"], u.columns["speaker"]) for u in found.utterances] == [("x1", "x1"), ("x2", "x2")]
    other = read(tmp_path, "test")
    assert other.utterances[0].text == 'He said "no".'
    assert other.problems == (
        f"{tmp_path.name}/test.tsv:3: got path 'gone.mp3', expected a file that exists: correct the name or delete the "
        "row.",
    )
    assert splits_of(str(tmp_path)) == ("test", "train")
    with pytest.raises(DataError, match="has test, train, but split 'dev' was named"):
        read(tmp_path, "dev")


def test_librispeech(tmp_path: Path) -> None:
    chapter = tmp_path / "train-clean-100" / "84" / "121123"
    record(chapter / "84-121123-0000.flac")
    record(chapter / "84-121123-0001.wav")
    (chapter / "84-121123.trans.txt").write_text("84-121123-0000 GO ON\n84-121123-0001 STOP\n84-121123-0002 GONE\n")

    found = read(tmp_path, "train-clean-100")

    where = "train-clean-100/84/121123/84-121123.trans.txt"
    assert [(u.where, u.text) for u in found.utterances] == [(f"{where}:1", "GO ON"), (f"{where}:2", "STOP")]
    assert found.utterances[0].columns == {"speaker": "84", "chapter": "121123"}
    assert found.problems[0].startswith(f"{where}:3: got utterance '84-121123-0002.flac', expected a file that exists")
    assert splits_of(str(tmp_path)) == ("train-clean-100",)
    assert read(tmp_path / "train-clean-100").utterances == found.utterances


@pytest.fixture
def kaldi(tmp_path: Path) -> Path:
    """Two recordings, of which the second is cut into three utterances."""
    folder = tmp_path / "data" / "train"
    folder.mkdir(parents=True)
    record(tmp_path / "audio" / "one.wav")
    record(tmp_path / "audio" / "long.wav", 40.0)
    (folder / "wav.scp").write_text(f"r1 {tmp_path}/audio/one.wav\nr2 audio/long.wav\nr3 sph2pipe -f wav x.sph |\n")
    (folder / "text").write_text("u1 one\nu2 two words\nu3 three\nu4 piped\nu5 nowhere\n")
    (folder / "utt2spk").write_text("u1 anna\nu2 bert\nu3 bert\n")
    (folder / "segments").write_text("u1 r1 0.1 0.4\nu2 r2 30.5 32.25\nu3 r2 38 -1\nu4 r3 0 1\n")
    return tmp_path


def test_kaldi(kaldi: Path) -> None:
    found = read(kaldi / "data")

    assert [(u.where, u.text, u.columns["speaker"]) for u in found.utterances] == [
        ("train/segments:1", "one", "anna"),
        ("train/segments:2", "two words", "bert"),
        ("train/segments:3", "three", "bert"),
    ]
    long = ramp(40.0)
    for utterance, wave in zip(
        found.utterances, (ramp(0.5)[1600:6400], long[488_000:516_000], long[608_000:]), strict=True
    ):
        np.testing.assert_array_equal(decode(utterance.audio), wave)
    piped, nowhere = found.problems
    assert piped.startswith("train/segments:4: got a command ('sph2pipe -f wav x.sph |'), expected the path")
    assert nowhere.startswith("train/text:5: got utterance 'u5', expected one of segments")


def test_kaldi_without_segments(kaldi: Path) -> None:
    folder = kaldi / "data" / "train"
    (folder / "segments").unlink()
    (folder / "text").write_text("r1 one\nr1 again\n")

    found = read(folder)

    assert [(u.where, u.text) for u in found.utterances] == [("train/wav.scp:1", "one")]
    assert [problem.split(": ")[0] for problem in found.problems] == [
        "train/text:2",
        "train/wav.scp:2",
        *2 * ["train/wav.scp:3"],
    ]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("u1 r1 0.1", "got 3 fields, expected utterance, recording, start and end"),
        ("u1 r9 0.1 0.2", "got recording 'r9', expected one of wav.scp"),
        ("u1 r1 x 0.2", "got start 'x', expected seconds from 0 on"),
        ("u1 r1 0.1 nan", "got end 'nan', expected seconds from 0 on"),
        ("u1 r1 0.3 0.2", "got an end of 0.2 s after a start of 0.3 s"),
    ],
)
def test_segments_that_cannot_be(kaldi: Path, line: str, fault: str) -> None:
    folder = kaldi / "data" / "train"
    (folder / "segments").write_text(f"{line}\n")
    (folder / "text").write_text("u1 one\n")
    assert read(folder).problems[0].startswith(f"train/segments:1: {fault}")


def test_a_segment_behind_its_recording_is_a_problem(kaldi: Path) -> None:
    (kaldi / "data" / "train" / "segments").write_text("u1 r1 0.2 0.9\nu2 r1 0.2 1.1\nu3 r1 3 4\n")
    within, behind, far = (u for u in read(kaldi / "data").utterances)
    assert len(decode(within.audio)) == 4800  # as far as there are samples: its end is rounded
    for utterance in (behind, far):
        with pytest.raises(AudioProblem, match=r"'one\.wav' lasts 0\.50 s, expected it to reach to"):
            decode(utterance.audio)


def test_nemo(tmp_path: Path) -> None:
    record(tmp_path / "a.wav", 40.0)
    lines: list[dict[str, Any]] = [
        {"audio_filepath": "a.wav", "text": "part", "offset": 31.0, "duration": 1.5, "speaker": "s"},
        {"audio_filepath": str(record(tmp_path / "whole.flac")), "text": "whole", "duration": 0.52},
        {"audio_filepath": "a.wav", "text": "head", "duration": 2.0},
        {"audio_filepath": "a.wav", "text": "x", "duration": -1},
    ]
    (tmp_path / "train_manifest.json").write_text("\n".join(map(json.dumps, lines)))

    found = read(tmp_path)

    assert [u.text for u in found.utterances] == ["part", "whole", "head"]
    assert [len(decode(u.audio)) for u in found.utterances] == [24_000, 8_000, 32_000]
    np.testing.assert_array_equal(decode(found.utterances[0].audio), ramp(40.0)[31 * RATE : round(32.5 * RATE)])
    assert found.utterances[1].audio == (tmp_path / "whole.flac").read_bytes()
    assert found.problems[0].endswith(
        "train_manifest.json:4: got duration '-1', expected seconds from 0 on: correct it."
    )
    assert read(tmp_path / "train_manifest.json", None) == found
    record(tmp_path / "dev.wav")
    (tmp_path / "dev.jsonl").write_text(json.dumps({"audio_filepath": "dev.wav", "text": "x"}))
    assert splits_of(str(tmp_path)) == ("dev", "train")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.csv", "path,sentence,speaker\na.wav,one,x\n"),
        ("train.tsv", "audio\ttext\tspeaker\na.wav\tone\tx\n"),
        ("speech.csv", "wav_filename,wav_filesize,transcript,speaker\na.wav,12,one,x\n"),
        ("train.jsonl", '{"audio": "a.wav", "transcription": "one", "speaker": "x"}\n'),
    ],
)
def test_a_table_with_a_column_of_recordings(tmp_path: Path, name: str, content: str) -> None:
    path = record(tmp_path / "a.wav")
    (tmp_path / name).write_text(content)
    assert rows(read(tmp_path)) == [(f"{tmp_path.name}/{name}:{1 + ('csv' in name or 'tsv' in name)}", "one", "x")]
    assert read(tmp_path).utterances[0].audio == path
    assert read(tmp_path / name, None) == read(tmp_path)


def test_parquet_with_recordings_in_it(tmp_path: Path) -> None:
    content = record(tmp_path / "a.wav").read_bytes()
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    sounds = [{"bytes": content, "path": None}, {"bytes": None, "path": "a.wav"}, None]
    table = pyarrow.table({"audio": pyarrow.array(sounds, kind), "text": ["one", "two", "three"], "speaker": ["x"] * 3})
    parquet.write_table(table, tmp_path / "train.parquet", row_group_size=2)

    found = read(tmp_path)

    assert [u.text for u in found.utterances] == ["one", "two", "three"]
    assert [found.utterances[at].audio for at in (0, 1)] == [content, content]
    with pytest.raises(AudioProblem, match="got no audio"):
        _ = found.utterances[2].audio


def test_audiofolder_in_parquet(tmp_path: Path) -> None:
    record(tmp_path / "train" / "a.wav")
    table = pyarrow.table({"file_name": ["a.wav", "b.wav"], "transcription": ["one", "two"], "age": [7, None]})
    parquet.write_table(table, tmp_path / "train" / "metadata.parquet")

    found = read(tmp_path)

    assert [(u.where, u.text, u.columns["age"]) for u in found.utterances] == [("train/metadata.parquet:1", "one", "7")]
    assert found.problems[0].startswith("train/metadata.parquet:2: got file_name 'b.wav'")
    (tmp_path / "train" / "metadata.parquet").write_bytes(b"PAR1 and no more")
    assert "is not a Parquet table" in read(tmp_path).problems[0]


WORDS = [{"word": f"w{at}", "start": at * 2.0, "end": at * 2.0 + (1.0 if at % 10 == 9 else 1.9)} for at in range(30)]


def test_long_recordings_are_cut_by_the_times_of_words(tmp_path: Path) -> None:
    record(tmp_path / "long.wav", 60.0)
    record(tmp_path / "short.wav", 2.0)
    lines = [
        {"file_name": "long.wav", "transcription": "all", "words": WORDS, "speaker": "x"},
        {"file_name": "short.wav", "transcription": "kept", "words": WORDS[:1]},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))

    found = read(tmp_path)

    assert found.problems == ()
    *pieces, short = found.utterances
    assert short.text == "kept"
    assert " ".join(u.text for u in pieces) == " ".join(f"w{at}" for at in range(30))
    assert [u.text.split()[0] for u in pieces] == ["w0", "w10", "w20"]  # the two longest pauses
    assert all(u.columns == {"speaker": "x"} for u in pieces)
    waves = [decode(u.audio) for u in pieces]
    assert all(len(wave) <= 30 * RATE for wave in waves)
    np.testing.assert_array_equal(waves[1], ramp(60.0)[round(19.5 * RATE) : round(39.5 * RATE)])


@pytest.mark.parametrize(
    ("segments", "fault"),
    [
        ([{"start": 0, "end": 41, "text": "x"}], "got a part of 41.0 s at 0.0 s in segments"),
        ([{"start": 3, "end": 2, "text": "x"}], "got {'start': 3, 'end': 2, 'text': 'x'} in segments"),
        ([{"start": 3, "end": 4}], "got {'start': 3, 'end': 4} in segments"),
        (["x"], "got x in segments"),
    ],
)
def test_times_that_cannot_be(tmp_path: Path, segments: list[Any], fault: str) -> None:
    record(tmp_path / "a.wav")
    row = {"file_name": "a.wav", "transcription": "x", "segments": segments}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    assert read(tmp_path).problems[0].startswith(f"{tmp_path.name}/metadata.jsonl:1: {fault}")


def test_names_of_speakers_are_compared_as_they_are_read(tmp_path: Path) -> None:
    record(tmp_path / "a.wav")
    names = [unicodedata.normalize("NFC", "Zoë"), unicodedata.normalize("NFD", "Zoë"), " Zoë "]
    lines = [f"a.wav,{unicodedata.normalize('NFD', 'é')},{name}" for name in names]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,transcription,speaker", *lines]))
    assert {(text, speaker) for _, text, speaker in rows(read(tmp_path))} == {
        ("é", unicodedata.normalize("NFC", "Zoë"))
    }


def test_a_table_in_utf_16(tmp_path: Path) -> None:
    record(tmp_path / "a.wav")
    (tmp_path / "metadata.csv").write_bytes("file_name\ttranscription\r\na.wav\tça\r\n".encode("utf-16"))
    assert [text for _, text, _ in rows(read(tmp_path))] == ["ça"]


def test_a_row_that_cannot_be_used_still_says_whose_it_is(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("file_name,transcription,speaker\ngone.wav,one,anna\n")
    assert [dict(row.columns) for row in read(tmp_path).left_out] == [{"speaker": "anna"}]


def test_every_table_is_stamped(kaldi: Path) -> None:
    first = stamp(str(kaldi / "data"))
    assert [Path(name).name for name, _, _ in first] == ["segments", "text", "utt2spk", "wav.scp"]
    (kaldi / "data" / "train" / "text").write_text("u1 one\n")
    assert stamp(str(kaldi / "data")) != first
