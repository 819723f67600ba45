"""Tables in parts, as the hub's downloads have them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import soundfile
from pyarrow import parquet

from zo_common.errors import DataError
from zo_common.speech.manifest import read_manifest
from zo_common.speech.splits import splits_of
from zo_common.speech.stamp import stamp


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """A data set's files as the hub has them: train in two parts, test in one, in the folder `data`."""
    soundfile.write(tmp_path / "a.wav", 0.3 * np.sin(np.arange(8000)), 16_000)
    content = (tmp_path / "a.wav").read_bytes()
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    names = ("train-00000-of-00002", "train-00001-of-00002-0a1b2c", "test-00000-of-00001")
    (tmp_path / "hub" / "data").mkdir(parents=True)
    for name in names:
        sounds = pyarrow.array([{"bytes": content, "path": None}], kind)
        table = pyarrow.table({"audio": sounds, "sentence": [name]})
        parquet.write_table(table, tmp_path / "hub" / "data" / f"{name}.parquet")
    return tmp_path / "hub"


def test_parts_are_one_split(snapshot: Path) -> None:
    data = snapshot / "data"

    found = read_manifest(str(data), split="train")

    assert splits_of(str(data)) == ("test", "train")
    assert [(u.where, u.text) for u in found.utterances] == [
        ("data/train-00000-of-00002.parquet:1", "train-00000-of-00002"),
        ("data/train-00001-of-00002-0a1b2c.parquet:1", "train-00001-of-00002-0a1b2c"),
    ]
    assert found.problems == ()
    assert [Path(name).name for name, _, _ in stamp(str(data))] == sorted(path.name for path in data.iterdir())


def test_a_part_that_is_not_there(snapshot: Path) -> None:
    (snapshot / "data" / "train-00000-of-00002.parquet").unlink()

    assert read_manifest(str(snapshot / "data"), split="train").problems == (
        "data/train-00001-of-00002-0a1b2c.parquet: got parts 00001 of 00002, expected each part once: download them "
        "again.",
    )


def test_manifests_in_parts(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", 0.3 * np.sin(np.arange(8000)), 16_000)
    for number in range(2):
        row = {"audio_filepath": "a.wav", "text": f"part {number}"}
        (tmp_path / f"train-0000{number}-of-00002.jsonl").write_text(json.dumps(row))

    assert [u.text for u in read_manifest(str(tmp_path), split="train").utterances] == ["part 0", "part 1"]


def test_the_folder_within_a_download_is_named(snapshot: Path) -> None:
    with pytest.raises(DataError, match=r"in a folder per split: name its folder '.*hub/data' \(a table\)\.$"):
        read_manifest(str(snapshot))
    with pytest.raises(DataError, match=r"name its folder '.*hub/data' \(a table\)\.$"):
        read_manifest(str(snapshot.parent))


def test_two_tables_of_one_split(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("path,text\na.wav,one\n")
    (tmp_path / "train.jsonl").write_text('{"path": "a.wav", "text": "one"}\n')

    with pytest.raises(DataError, match=r"holds both train\.csv and train\.jsonl, expected one of them"):
        read_manifest(str(tmp_path), split="train")


def test_a_damaged_part(snapshot: Path) -> None:
    (snapshot / "data" / "test-00000-of-00001.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")

    (problem,) = read_manifest(str(snapshot / "data"), split="test").problems

    assert problem.startswith("data/test-00000-of-00001.parquet is not a Parquet table")
