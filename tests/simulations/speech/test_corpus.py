"""The corpus on disk: layout, disjoint splits, determinism, reuse and recovery."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

pytest.importorskip("espeakng_loader")

from simulations.speech import corpus as module
from simulations.speech.corpus import COLUMNS, SPLITS, CorpusConfig, corpus_speakers, in_room, write_corpus
from simulations.speech.espeak import ACCENTS, list_variants, synthesize
from simulations.speech.sentences import sentence_key
from zo_common.errors import ConfigError

SMALL = CorpusConfig(
    train_speakers=("m1", "f2"),
    dev_speakers=("m2",),
    test_speakers=("f4", "m4"),
    utterances_per_speaker=3,
    dev_utterances=2,
    test_utterances=5,
)


def rows_of(directory: Path, split: str) -> list[dict[str, str]]:
    with (directory / split / "metadata.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def digest(directory: Path) -> dict[str, str]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("corpus") / "small"
    write_corpus(directory, SMALL)
    return directory


def test_layout(written: Path) -> None:
    for split, count in zip(SPLITS, (6, 2, 5), strict=True):
        rows = rows_of(written, split)
        assert len(rows) == count
        assert tuple(rows[0]) == COLUMNS
        for row in rows:
            path = written / split / row["file_name"]
            info = soundfile.info(path)
            assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "PCM_16")
            assert row["file_name"].split("/")[0] == row["speaker"]
            assert row["accent"] == SMALL.accent
        assert len(list((written / split).rglob("*.wav"))) == count


def test_splits_share_neither_speakers_nor_sentences(written: Path) -> None:
    rows = {split: rows_of(written, split) for split in SPLITS}
    for column, key in (("speaker", str), ("transcription", sentence_key)):
        groups = [{key(row[column]) for row in rows[split]} for split in SPLITS]
        assert sum(len(group) for group in groups) == len(set.union(*groups))


def test_audio_is_what_the_speaker_says(written: Path) -> None:
    row = rows_of(written, "test")[-1]
    speaker = next(speaker for speaker in corpus_speakers(SMALL)["test"] if speaker.id == row["speaker"])
    wave, _ = soundfile.read(written / "test" / row["file_name"], dtype="float32")
    speech = synthesize(row["transcription"], speaker)
    lead, tail = wave[:8_000], wave[-4_800:]
    assert len(wave) == len(speech) + 8_000 + 4_800
    np.testing.assert_allclose(wave[8_000:-4_800], speech, atol=0.02)
    for silence in (lead, tail):
        assert -51 < 20 * np.log10(silence.std()) < -49
    np.testing.assert_allclose(wave, in_room(speech, SMALL, row["file_name"]), atol=1 / 32_000)


def test_the_datasets_package_reads_it(written: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchcodec", reason="datasets encodes audio columns with torchcodec", exc_type=ImportError)
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset("audiofolder", data_dir=str(written / "train"), cache_dir=str(tmp_path))["train"]
    assert {"audio", *COLUMNS[1:]} <= set(loaded.column_names)
    assert len(loaded) == 6


def test_same_config_gives_the_same_bytes_and_is_reused(written: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    first = write_corpus(tmp_path / "again", SMALL, lambda done, total: calls.append((done, total)))
    assert calls == [(done, 13) for done in range(1, 14)]
    assert not first.reused
    assert digest(tmp_path / "again") == digest(written)
    second = write_corpus(tmp_path / "again", SMALL, lambda done, total: calls.append((done, total)))
    assert len(calls) == 13
    assert second == replace(first, reused=True)
    assert first.utterances == {"train": 6, "dev": 2, "test": 5}
    assert all(1.0 < first.seconds[split] / first.utterances[split] < 6.0 for split in SPLITS)


def test_another_config_replaces_it(tmp_path: Path) -> None:
    write_corpus(tmp_path, SMALL)
    fewer = replace(SMALL, utterances_per_speaker=1, train_speakers=("m3",), accent="scotland")
    result = write_corpus(tmp_path, fewer)
    assert not result.reused
    assert result.speakers["train"] == ("scotland-m3",)
    assert len(list((tmp_path / "train").rglob("*.wav"))) == 1
    assert not write_corpus(tmp_path, replace(fewer, seed=1)).reused


def test_an_interrupted_write_is_redone(written: Path, tmp_path: Path) -> None:
    def stop(done: int, _total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_corpus(tmp_path / "corpus", SMALL, stop)
    assert not (tmp_path / "corpus" / "corpus.json").exists()
    assert not write_corpus(tmp_path / "corpus", SMALL).reused
    assert digest(tmp_path / "corpus") == digest(written)


def test_a_damaged_record_is_redone(tmp_path: Path) -> None:
    write_corpus(tmp_path, SMALL)
    (tmp_path / "corpus.json").write_text("{", encoding="utf-8")
    assert not write_corpus(tmp_path, SMALL).reused
    assert json.loads((tmp_path / "corpus.json").read_text(encoding="utf-8"))["config"]["accent"] == SMALL.accent


def test_a_missing_recording_is_noticed(written: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path, SMALL)
    next((tmp_path / "dev").rglob("*.wav")).unlink()
    assert not write_corpus(tmp_path, SMALL).reused
    assert digest(tmp_path) == digest(written)


def test_foreign_folders_are_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "train" / "mine.wav"
    mine.parent.mkdir()
    mine.write_bytes(b"precious")
    with pytest.raises(ConfigError, match="empty or new folder"):
        write_corpus(tmp_path, SMALL)
    assert mine.read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"accent": "martian"}, "Unknown accent"),
        ({"dev_speakers": ("m1",)}, "m1 occur more than once"),
        ({"test_speakers": ()}, "test split has 0 speakers"),
        ({"utterances_per_speaker": 0}, "train split"),
        ({"test_utterances": 1}, "at least one utterance for each"),
        ({"rate_range": (180, 145)}, "lower end first"),
        ({"sampling_rate": 0}, "sampling rate"),
        ({"lead_seconds": -0.1}, "lead_seconds"),
        ({"noise_dbfs": 3.0}, "noise_dbfs"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(SMALL, **settings)


def test_unknown_variant_is_refused_before_anything_is_deleted(written: Path) -> None:
    before = digest(written)
    with pytest.raises(ConfigError, match="Unknown voice variant"):
        write_corpus(written, replace(SMALL, dev_speakers=("nobody",)))
    assert digest(written) == before


def test_default_speakers_exist_and_vary() -> None:
    config = CorpusConfig()
    assert {name for split in SPLITS for name in config.speakers_of(split)} <= set(list_variants())
    for accent in ACCENTS:
        speakers = [s for group in corpus_speakers(replace(config, accent=accent)).values() for s in group]
        assert len({(s.rate, s.pitch) for s in speakers}) > len(speakers) // 2
        assert all(145 <= s.rate <= 180 and 35 <= s.pitch <= 65 for s in speakers)
    assert corpus_speakers(config) == corpus_speakers(config) != corpus_speakers(replace(config, seed=1))


def test_record_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(module, "_write_record", fail)
    with pytest.raises(OSError, match="disk full"):
        write_corpus(tmp_path, SMALL)
    monkeypatch.undo()
    assert not write_corpus(tmp_path, SMALL).reused


def test_a_full_disk_is_said_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "0000.wav"
    path.symlink_to("/dev/full")
    speaker = corpus_speakers(SMALL)["test"][0]

    with pytest.raises(OSError) as caught:
        module._write_utterance(path, "it is full", speaker, SMALL)

    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))


def test_two_processes_that_want_one_corpus_write_it_once(written: Path, tmp_path: Path) -> None:
    directory = tmp_path / "shared" / "corpus"
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        made = [job.result(120) for job in [pool.submit(write_corpus, directory, SMALL) for _ in range(2)]]

    assert sorted(corpus.reused for corpus in made) == [False, True]
    assert digest(directory) == digest(written)
