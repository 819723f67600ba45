"""A table that changes is noticed."""

from __future__ import annotations

import os
from pathlib import Path

from zo_common.speech.stamp import stamp


def test_every_change_of_a_table_is_another_stamp(tmp_path: Path) -> None:
    table = tmp_path / "train" / "metadata.csv"
    table.parent.mkdir()
    table.write_text("file_name,transcription\n")
    first = stamp(str(tmp_path))
    assert first == stamp(str(tmp_path)) != ()

    os.utime(table, ns=(1, 1))
    touched = stamp(str(tmp_path))
    (tmp_path / "metadata.jsonl").write_text("{}\n")
    another = stamp(str(tmp_path))
    table.unlink()
    assert len({first, touched, another, stamp(str(tmp_path))}) == 4


def test_other_files_and_what_is_no_folder_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "one.wav").write_bytes(b"")
    assert stamp(str(tmp_path)) == stamp("openai/some-data") == ()
