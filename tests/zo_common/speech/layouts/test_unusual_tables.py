"""Tables that are nearly in a layout: read where they are clear, else one sentence with what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from zo_common.speech.manifest import Manifest, read_manifest

SEPARATOR = "\N{LINE SEPARATOR}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of two recordings without a table."""
    for name in ("a.wav", "b.wav"):
        soundfile.write(tmp_path / name, 0.3 * np.sin(np.arange(8000)), 16_000)
    return tmp_path


def read(folder: Path) -> Manifest:
    return read_manifest(str(folder), split="train")


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(("name", "audio"), [("metadata.jsonl", "file_name"), ("train.json", "audio_filepath")])
def test_a_json_array(folder: Path, name: str, audio: str, indent: int | None) -> None:
    rows = [{audio: "a.wav", "transcription": "[one], é"}, {audio: "b.wav", "transcription": "two"}]
    (folder / name).write_text(json.dumps(rows, indent=indent, ensure_ascii=False))

    found = read(folder)

    assert [u.text for u in found.utterances] == ["[one], é", "two"]
    lines = [2, 6] if indent else [1, 1]
    assert [u.where for u in found.utterances] == [f"{folder.name}/{name}:{line}" for line in lines]


def test_a_fault_in_an_array_is_told_once(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text(
        '[\n{"file_name": "a.wav", "transcription": "one"},\n{"file_name": b},\n5\n]'
    )

    found = read(folder)

    assert [u.text for u in found.utterances] == ["one"]
    (problem,) = found.problems
    assert problem == (
        f"{folder.name}/metadata.jsonl:3: got JSON with a fault at column 15 (Expecting value), expected an object "
        '{"file_name": ...}: correct the line.'
    )


@pytest.mark.parametrize(
    "content",
    [
        "file_name,transcription,transcription\na.wav,one,uno\n",
        "file_name,transcription,speaker,speaker\na.wav,one,x,y\n",
    ],
)
def test_a_column_that_is_there_twice(folder: Path, content: str) -> None:
    (folder / "metadata.csv").write_text(content)

    found = read(folder)

    twice = content.partition("\n")[0].split(",")[-1]
    assert (found.utterances, found.problems) == (
        (),
        (f"{folder.name}/metadata.csv: got column '{twice}' twice, expected it once: rename or delete one.",),
    )


@pytest.mark.parametrize("first", ["a.wav,one,x", "a|one|one"])
def test_a_table_without_a_header(folder: Path, first: str) -> None:
    (folder / "metadata.csv").write_text(f"{first}\n{first}\n")

    shown = ", ".join(first.split(","))
    assert read(folder).problems == (
        f"{folder.name}/metadata.csv begins with '{shown}', expected a header: make file_name,transcription its first "
        "line.",
    )


def test_kaldi_without_its_texts(folder: Path) -> None:
    (folder / "wav.scp").write_text("u1 a.wav\n")

    assert read(folder).problems == (
        f"{folder.name}/text is not there or empty, expected the utterances' texts: write it beside wav.scp.",
    )
    assert [u.text for u in read_manifest(str(folder), need_text=False).utterances] == [""]


def test_only_line_feeds_end_a_line(folder: Path) -> None:
    (folder / "wav.scp").write_text("u1 a.wav\r\nu2 b.wav\r\n")
    (folder / "text").write_text(f"u1 one{SEPARATOR}two\r\nu2 three\r\n")
    assert [u.text for u in read(folder).utterances] == [f"one{SEPARATOR}two", "three"]


def test_only_line_feeds_end_a_transcript(folder: Path) -> None:
    soundfile.write(folder / "8-9-0.wav", 0.3 * np.sin(np.arange(8000)), 16_000)
    (folder / "8-9.trans.txt").write_text(f"8-9-0 ONE{SEPARATOR}TWO\n")
    assert [u.text for u in read(folder).utterances] == [f"ONE{SEPARATOR}TWO"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_common_voice_with_whole_names_in_any_encoding(folder: Path, encoding: str) -> None:
    (folder / "clips").mkdir()
    (folder / "a.wav").rename(folder / "clips" / "a.wav")
    (folder / "train.tsv").write_bytes("client_id\tpath\tsentence\nx\tclips/a.wav\tça\n".encode(encoding))

    (found,) = read(folder).utterances

    assert (found.text, found.columns["speaker"]) == ("ça", "x")


def test_a_name_that_is_a_list(folder: Path) -> None:
    (folder / "train.jsonl").write_text('{"audio_filepath": ["a.wav"], "text": "one"}\n')

    (problem,) = read(folder).problems

    assert problem.endswith(
        "train.jsonl:1: got audio_filepath of type list, expected the path of a recording: fill it in or delete the "
        "row."
    )
