"""Reading tables, saved data sets and hub ids; every fault is named with its file and line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import soundfile

from zo_common.errors import DataError
from zo_common.speech.manifest import Manifest, read_manifest

Table = Callable[..., Path]


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """Writes a table, and recordings a.wav and b.wav beside it."""

    def write(content: str | bytes, name: str = "train/metadata.csv") -> Path:
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        for recording in ("a.wav", "b.wav"):
            soundfile.write(path.parent / recording, np.full(160, 0.1), 16_000)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path / "corpus"

    return write


def read(folder: Path, **options: Any) -> Manifest:
    return read_manifest(str(folder), **options)


def test_csv_with_split(table: Table) -> None:
    folder = table('file_name,transcription,speaker\na.wav,one,s1\n\nb.wav,"two,\n2",s2\na.wav,three,s1\n')
    manifest = read(folder)
    assert manifest == read(folder, split="train") == read(folder / "train") == read(folder / "train", split="train")
    assert manifest.problems == ()
    assert [u.where for u in manifest.utterances] == [f"train/metadata.csv:{line}" for line in (2, 4, 6)]
    assert [u.text for u in manifest.utterances] == ["one", "two,\n2", "three"]
    assert manifest.utterances[1].audio == folder / "train" / "b.wav"
    assert manifest.utterances[1].columns == {"speaker": "s2"}


def test_byte_order_mark_spaces_and_carriage_returns(table: Table) -> None:
    manifest = read(table(b"\xef\xbb\xbffile_name, transcription\r\na.wav,one\r\n"))
    assert [u.text for u in manifest.utterances] == ["one"]


def test_jsonl(table: Table) -> None:
    rows = [
        {"file_name": "a.wav", "sentence": "one\u2028two", "age": 7},
        {"file_name": "b.wav", "sentence": "2", "x": None},
    ]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    manifest = read(table("\n".join([lines[0], "", lines[1]]), "metadata.jsonl"), text_column="sentence")
    assert [(u.where, u.text, dict(u.columns)) for u in manifest.utterances] == [
        ("corpus/metadata.jsonl:1", "one\u2028two", {"age": "7"}),
        ("corpus/metadata.jsonl:3", "2", {"x": ""}),
    ]


def test_all_faulty_rows_are_listed(table: Table) -> None:
    folder = table(
        "file_name,transcription\na.wav,one\nmissing.wav,two\na.wav,  \n../a.wav,three\n/etc/a.wav,four\n,\n"
        f"a.wav,five,six\nb.wav,seven\n{'n' * 300}.wav,eight\ntrain,nine\n"
    )
    (folder / "train" / "train").mkdir()
    manifest = read(folder)
    assert [u.text for u in manifest.utterances] == ["one", "seven"]
    where = "train/metadata.csv:"
    expected = [
        (3, "got file_name 'missing.wav', expected a file that exists"),
        (4, "got an empty transcript"),
        (5, "got file_name '../a.wav', expected a path inside the folder"),
        (6, "got file_name '/etc/a.wav', expected a path inside the folder"),
        (8, "got 3 fields, expected 2 (file_name, transcription): put double quotes"),
        (10, "got file_name 'nnn"),
        (11, "got file_name 'train', expected a file that exists"),
    ]
    assert len(manifest.problems) == len(expected)
    for problem, (line, start) in zip(manifest.problems, expected, strict=True):
        assert problem.startswith(f"{where}{line}: {start}")
        assert problem.endswith(".")


def test_faulty_json_lines(table: Table) -> None:
    content = '{"file_name": "a.wav", "transcription": "one"}\n{"file_name": \n[1]\n{"file_name": "b.wav"}\n'
    content += '{"transcription": "two"}\n{"file_name": "a.wav", "transcription": 3}\n'
    manifest = read(table(content, "metadata.jsonl"))
    assert [u.text for u in manifest.utterances] == ["one"]
    starts = [
        "2: got JSON with a fault at column 15 (Expecting value)",
        "3: got [1], expected an object",
        "4: got an empty transcript",
        "5: got no file_name",
        "6: got a transcription of type int, expected text",
    ]
    for problem, start in zip(manifest.problems, starts, strict=True):
        assert problem.startswith(f"corpus/metadata.jsonl:{start}")


@pytest.mark.parametrize(
    ("header", "problems"),
    [
        (
            "file_name,sentence",
            [
                "text column 'transcription' not found in train/metadata.csv, it has file_name, sentence: "
                "did you mean text-column=sentence?"
            ],
        ),
        (
            "file_name,Transcript",
            [
                "text column 'transcription' not found in train/metadata.csv, it has file_name, Transcript: "
                "did you mean text-column=Transcript?"
            ],
        ),
        (
            "path,age",
            [
                "column 'file_name' not found in train/metadata.csv, it has path, age: rename the "
                "column of audio paths.",
                "text column 'transcription' not found in train/metadata.csv, it has path, age: "
                "name that of the transcripts as text-column.",
            ],
        ),
    ],
)
def test_wrong_columns(table: Table, header: str, problems: list[str]) -> None:
    assert read(table(f"{header}\na.wav,one\nb.wav,two\n")) == Manifest((), tuple(problems))


def test_tables_that_cannot_be_split_into_rows(table: Table) -> None:
    (problem,) = read(table(b"file_name,transcription\na.wav,caf\xe9\n")).problems
    assert problem.startswith("train/metadata.csv:2: got bytes that are not UTF-8")
    manifest = read(table('file_name,transcription\na.wav,one\na.wav,"open\nb.wav,two\n'))
    assert [u.text for u in manifest.utterances] == ["one", "two"]
    (problem,) = manifest.problems
    assert problem.startswith("train/metadata.csv:3: got a row that is not CSV (a quote that is not closed)")
    for empty in ("", "file_name,transcription\n"):
        assert read(table(empty)).problems[0].startswith("train/metadata.csv: got no rows")


def message(source: Path | str, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_manifest(str(source), **options)
    assert len(caught.value.problems) == 1
    return caught.value.problems[0]


def test_sources_without_a_table(table: Table, tmp_path: Path) -> None:
    assert "is not there, expected a folder with metadata.csv or metadata.jsonl" in message(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "has neither metadata.csv nor metadata.jsonl" in message(tmp_path / "empty")
    folder = table("file_name,transcription\na.wav,one\n")
    assert "is a file, expected a folder" in message(folder / "train" / "a.wav")
    table("file_name,transcription\n", "test/metadata.csv")
    assert f"'{folder}' has test, train, but no split was named" in message(folder)
    assert f"'{folder}' has test, train, but split 'dev' was named" in message(folder, split="dev")
    table("{}", "train/metadata.jsonl")
    assert "holds both metadata.csv and metadata.jsonl" in message(folder, split="train")


def test_a_folder_without_splits_is_train_only(table: Table) -> None:
    folder = table("file_name,transcription\na.wav,one\n", "metadata.csv")
    assert len(read(folder, split="train").utterances) == 1
    assert "has train, but split 'test' was named" in message(folder, split="test")


@pytest.fixture
def dataset(tmp_path: Path) -> datasets.Dataset:
    soundfile.write(tmp_path / "a.wav", np.full(160, 0.1), 16_000)
    content = (tmp_path / "a.wav").read_bytes()
    rows = {
        "audio": [{"bytes": content, "path": None}, {"bytes": content, "path": "b.wav"}, None],
        "sentence": ["one", " ", "three"],
        "accent": ["x", "y", None],
        "age": [1, 2, 3],
    }
    return datasets.Dataset.from_dict(rows).cast_column("audio", datasets.Audio())


def test_saved_dataset(dataset: datasets.Dataset, tmp_path: Path) -> None:
    dataset.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": dataset, "test": dataset}).save_to_disk(tmp_path / "two")
    manifest = read(tmp_path / "one", text_column="sentence")
    assert manifest.utterances[0].where == "one[train] row 0"
    assert manifest.utterances[0].audio == (tmp_path / "a.wav").read_bytes()
    assert manifest.utterances[0].columns == {"accent": "x", "age": "1"}
    assert len(manifest.utterances) == 1
    assert manifest.problems[0].startswith("one[train] row 1: got an empty transcript")
    assert manifest.problems[1].startswith("one[train] row 2: got no audio")
    assert read(tmp_path / "two", split="test", text_column="sentence").utterances[0].where == "two[test] row 0"
    assert "has train, test, but no split was named" in message(tmp_path / "two")
    assert "has train, but split 'test' was named" in message(tmp_path / "one", split="test")
    (problem,) = read(tmp_path / "one").problems
    assert "it has audio, sentence, accent, age: did you mean text-column=sentence?" in problem


def test_saved_dataset_with_paths_and_faults(dataset: datasets.Dataset, tmp_path: Path) -> None:
    rows = {"audio": [str(tmp_path / "a.wav"), "gone.wav"], "transcription": ["one", "two"]}
    loaded = datasets.Dataset.from_dict(rows).cast_column("audio", datasets.Audio(decode=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load_dataset", lambda *_, **__: loaded)
        manifest = read_manifest("owner/speech", split="train")
    assert manifest.utterances[0].audio == tmp_path / "a.wav"
    assert manifest.problems[0].startswith("speech[train] row 1: got the path 'gone.wav', expected bytes or a file")
    dataset.remove_columns("audio").save_to_disk(tmp_path / "mute")
    (problem,) = read(tmp_path / "mute", text_column="sentence").problems
    assert problem.startswith("no Audio column found in mute[train], it has sentence, accent, age")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "state.json").write_text("{")
    assert "is not what save_to_disk writes" in message(tmp_path / "broken")


def test_hub_id_without_network() -> None:
    text = message("owner/speech", split="train")
    assert text.startswith("'owner/speech' is neither a folder here nor a data set that the Hugging Face hub gives")
    assert "download it on a machine with network" in text
    assert "HF_HUB_OFFLINE=1" in text


def test_recordings_that_nobody_wrote_down(table: Table) -> None:
    for content in (
        "file_name\na.wav\nb.wav\n",
        "file_name,speaker\na.wav,x\nb.wav,y\n",
        "file_name,transcription\na.wav,\nb.wav, \n",
    ):
        folder = table(content)
        assert read(folder).problems
        found = read(folder, need_text=False)
        assert found.problems == ()
        assert [u.text.strip() for u in found.utterances] == ["", ""]
    found = read(table("file_name,transcription,speaker\na.wav,one,x\nmissing.wav,,y\n"), need_text=False)
    assert [(u.text, dict(u.columns)) for u in found.utterances] == [("", {"speaker": "x"})]  # "one" is not taken along
    assert "missing.wav" in found.problems[0]
