"""Tables and layouts of recordings as fuzzed readers: whatever stands in a file, it is a problem with its line."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import soundfile
from fuzz_samples import new_folder
from fuzz_target import Target
from pyarrow import parquet

from zo_common.errors import DataError
from zo_common.speech.audio import AudioProblem, decode
from zo_common.speech.clip import Clip
from zo_common.speech.manifest import read_manifest
from zo_common.speech.splits import splits_of
from zo_common.speech.stamp import stamp

_TIMES = [{"start": 0.0, "end": 20.0, "text": "one"}, {"start": 21.5, "end": 40.25, "text": "two"}]


def layout_targets() -> dict[str, Target]:
    """By name; all write one file of a folder, and read the folder."""
    csv = b'file_name,transcription,speaker\na.wav,"one, two",x\nb.wav,"a ""b""\nc",y\n'
    rows = [{"file_name": "a.wav", "transcription": "one", "segments": _TIMES}, {"file_name": "b.wav", "words": []}]
    nemo = [{"audio_filepath": "a.wav", "text": "one", "offset": 0.0, "duration": 0.25}, {"audio_filepath": "b.wav"}]
    voice = b"client_id\tpath\tsentence\taccents\nx\ta\tone\t\ny\tb.mp3\ttwo\tScots\n"
    table = io.BytesIO()
    parquet.write_table(pyarrow.table({"file_name": ["a.wav", "b.wav"], "transcription": ["one", None]}), table)
    return {
        "metadata.csv": _target("metadata.csv", csv, csv.replace(b",", b";").replace(b"\n", b"\r\n")),
        "metadata.jsonl": _target("metadata.jsonl", _lines(rows), _lines(rows[:1]), is_json=True),
        "a JSON array": _target("metadata.jsonl", json.dumps(rows, indent=1).encode(), is_json=True),
        "metadata.parquet": _target("metadata.parquet", table.getvalue(), allowance=64 << 20),
        "Common Voice": _target("train.tsv", voice, others={"clips/a.mp3": b"", "clips/b.mp3": b""}),
        "LibriSpeech": _target("8/9/8-9.trans.txt", b"8-9-0 ONE TWO\n8-9-1 THREE\n", others={"8/9/8-9-0.flac": b""}),
        "Kaldi segments": _target("segments", b"u1 a 0 0.25\nu2 b 0.5 -1\n", others=_kaldi("segments")),
        "Kaldi wav.scp": _target("wav.scp", b"a a.wav\nb sox x.wav - |\n", others=_kaldi("wav.scp")),
        "Kaldi text": _target("text", b"u1 one two\nu2 three\n", others=_kaldi("text")),
        "NeMo": _target("train_manifest.json", _lines(nemo), _lines(nemo[:1]), is_json=True),
        "a bare table": _target("train.csv", csv.replace(b"file_name", b"path")),
        "dataset_dict.json": _target(
            "dataset_dict.json", b'{"splits": ["train", "test"]}', is_json=True, allowance=64 << 20
        ),
        "a recording": Target(_decode(), _recordings(), (AudioProblem,), allowance=64 << 20),
    }


def _lines(rows: list[dict[str, object]]) -> bytes:
    return "\n".join(map(json.dumps, rows)).encode()


def _kaldi(without: str) -> dict[str, bytes]:
    whole = {"wav.scp": b"a a.wav\nb b.wav\n", "text": b"u1 one\nu2 two\n", "segments": b"u1 a 0 0.2\nu2 b 0.5 -1\n"}
    return {name: content for name, content in whole.items() if name != without}


def _target(
    name: str,
    *seeds: bytes,
    others: dict[str, bytes] | None = None,
    is_json: bool = False,
    allowance: int = 4 << 20,
) -> Target:
    folder = new_folder()
    for other, content in {"a.wav": b"", "b.wav": b"", name: b"", **(others or {})}.items():
        (folder / other).parent.mkdir(parents=True, exist_ok=True)
        (folder / other).write_bytes(content)

    def read(data: bytes) -> None:
        (folder / name).write_bytes(data)
        splits_of(str(folder))
        stamp(str(folder))
        for need_text in (True, False):
            try:
                found = read_manifest(str(folder), split="train", need_text=need_text)
            except DataError as error:
                _sentences(error.problems)
                continue
            _sentences(found.problems)
            for utterance in found.utterances:
                _ = utterance.columns.get("speaker"), utterance.text.strip(), utterance.where

    return Target(read, seeds, is_json=is_json, allowance=allowance)


def _sentences(problems: tuple[str, ...]) -> None:
    if not all(problem.endswith((".", "?")) for problem in problems):
        raise AssertionError(f"no sentence among {problems!r}"[:400])


def _recordings() -> tuple[bytes, ...]:
    wave = 0.3 * np.sin(np.arange(1600))
    found = []
    for kind in ("WAV", "FLAC", "OGG"):
        target = io.BytesIO()
        soundfile.write(target, wave, 16_000, format=kind)
        found.append(target.getvalue())
    return tuple(found)


def _decode() -> Callable[[bytes], None]:
    path = Path(new_folder()) / "a.wav"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        for source in (path, data):
            try:
                wave = decode(Clip(source, 0.02, 0.05)())
            except AudioProblem:
                continue
            if not len(wave) or not np.isfinite(wave).all():
                raise AssertionError("a recording without samples, or with some that are no numbers")
        decode(data)

    return read
