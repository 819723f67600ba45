"""`zo-asr data segment` on a minute of joined recordings whose texts are known, by the real Whisper-tiny.en."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile
from called import caller

from zo_common.speech import cli
from zo_common.speech.manifest import read_manifest

RATE = 16_000
COUNT = 18


@pytest.fixture
def joined(tmp_path: Path) -> tuple[Path, list[tuple[str, float, float]]]:
    """One recording of many sentences, a second of pause between them, and where each sentence is in it."""
    pytest.importorskip("espeakng_loader")
    from simulations.speech.corpus import CorpusConfig, write_corpus

    corpus = write_corpus(
        tmp_path / "corpus",
        CorpusConfig(
            accent="us", train_speakers=("m1",), dev_speakers=("m2",), test_speakers=("f4",),
            utterances_per_speaker=COUNT, dev_utterances=1, test_utterances=1,
        ),
    ).directory  # fmt: skip
    waves, sentences, at = [], [], 0.0
    for each in read_manifest(str(corpus), split="train").utterances:
        wave, _ = soundfile.read(each.source, dtype="float32")
        sentences.append((each.text, at, at + len(wave) / RATE))
        waves += [wave, np.zeros(RATE, np.float32)]
        at += len(wave) / RATE + 1
    folder = tmp_path / "talks" / "train"
    folder.mkdir(parents=True)
    soundfile.write(folder / "talk.flac", np.concatenate(waves), RATE)
    with (folder / "metadata.csv").open("w", newline="") as file:
        text = " ".join(text for text, _, _ in sentences)
        csv.writer(file).writerows([("file_name", "transcription", "speaker"), ("talk.flac", text, "anna")])
    return tmp_path / "talks", sentences


@pytest.mark.slow
def test_the_texts_come_back_piece_by_piece(
    joined: tuple[Path, list[tuple[str, float, float]]],
    whisper_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    talks, sentences = joined
    assert sentences[-1][2] > 60
    call = caller("zo-asr-data", cli.main, monkeypatch, capsys)
    status, said, _ = call("check", talks)
    assert status == 1 and "'zo-asr data segment'" in said

    status, said, error = call("segment", talks, tmp_path / "made", "--model", whisper_dir)

    assert status == 0, error
    made = read_manifest(str(tmp_path / "made"), split="train")
    assert made.problems == ()
    kept = 0
    for piece in made.utterances:
        start, end = float(piece.columns["start"]), float(piece.columns["end"])
        inside = [text for text, first, last in sentences if start <= (first + last) / 2 <= end]
        assert piece.text == " ".join(inside)
        assert (piece.columns["source"], piece.columns["speaker"]) == ("talk.flac", "anna")
        assert soundfile.info(piece.source).duration == pytest.approx(end - start, abs=0.02) and end - start <= 30
        kept += len(inside)
    assert kept >= 0.6 * COUNT
    assert (kept == COUNT) == ("left out" not in said)
    assert call("check", tmp_path / "made")[0] == 0
