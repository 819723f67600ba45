"""Tables as spreadsheets and people write them, and that a fault costs one row."""

from __future__ import annotations

import csv
import io
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from zo_common.speech.audio import local_audio
from zo_common.speech.table import csv_rows

HEADER = "file_name,transcription"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("file_name;transcription\na.wav;one, two\n", [(2, {"file_name": "a.wav", "transcription": "one, two"})]),
        ("file_name\ttranscription\na.wav\tone; two\n", [(2, {"file_name": "a.wav", "transcription": "one; two"})]),
        # a spreadsheet's empty columns and rows, and its line ends
        (
            "file_name,transcription,,\r\na.wav,one,,\r\n,,,\r\nb.wav,two,,\r\n,,,\r\n",
            [(2, {"file_name": "a.wav", "transcription": "one"}), (4, {"file_name": "b.wav", "transcription": "two"})],
        ),
        # a text of two lines
        (f'{HEADER}\na.wav,"one\ntwo"\nb.wav,x\n', [
            (2, {"file_name": "a.wav", "transcription": "one\ntwo"}), (4, {"file_name": "b.wav", "transcription": "x"}),
        ]),
        # fields beyond the header's that are empty
        (f"{HEADER}\na.wav,one,,\n", [(2, {"file_name": "a.wav", "transcription": "one"})]),
    ],
)  # fmt: skip
def test_what_programs_write_is_read(text: str, expected: list[tuple[int, dict[str, str]]]) -> None:
    assert csv_rows(text) == (["file_name", "transcription"], expected)


@pytest.mark.parametrize(
    "bad",
    ['a.wav,"open', 'a.wav,"Stop" he said', 'a.wav,"one"two"', 'a.wav,"one,', '"a.wav,one'],
)
def test_a_wrong_quote_costs_one_row(bad: str) -> None:
    rows = [f'{name}.wav,"text, {name}"' for name in "abcdef"]
    _, found = csv_rows("\n".join([HEADER, *rows[:3], bad, *rows[3:]]) + "\n")
    assert [line for line, row in found if isinstance(row, str)] == [5]
    assert [row["transcription"] for _, row in found if isinstance(row, dict)] == [f"text, {name}" for name in "abcdef"]


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=40)


@given(st.lists(st.tuples(TEXTS.filter(str.strip), TEXTS), max_size=8), st.sampled_from(",;\t"))
def test_what_csv_writes_is_read_back(texts: list[tuple[str, str]], delimiter: str) -> None:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows([("file_name", "transcription"), *texts])
    if any(text.count("\n") >= 50 for pair in texts for text in pair):
        return
    header, found = csv_rows(out.getvalue())
    assert header == ["file_name", "transcription"]
    assert [row for _, row in found] == [dict(zip(header, pair, strict=True)) for pair in texts]


@pytest.mark.parametrize(
    ("stored", "written"),
    [
        ("a/b.wav", "a\\b.wav"),
        ("a/b.wav", " a/b.wav "),
        (unicodedata.normalize("NFC", "é.wav"), unicodedata.normalize("NFD", "é.wav")),
        (unicodedata.normalize("NFD", "é.wav"), unicodedata.normalize("NFC", "é.wav")),
        (" a.wav", " a.wav"),
    ],
)
def test_a_name_is_found_as_other_systems_write_it(tmp_path: Path, stored: str, written: str) -> None:
    (tmp_path / stored).parent.mkdir(exist_ok=True)
    soundfile.write(tmp_path / stored, np.full(160, 0.1), 16_000)
    assert local_audio(tmp_path, written) == tmp_path / stored


@pytest.mark.parametrize("name", ["..\\a.wav", " ../a.wav", "a/../../b.wav"])
def test_no_spelling_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    for outside in ("a.wav", "b.wav"):
        soundfile.write(tmp_path / outside, np.full(160, 0.1), 16_000)
    assert "expected a path inside the folder" in str(local_audio(tmp_path / "in", name))
