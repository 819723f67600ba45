"""Waves as the model's feature extractor makes them, characters as labels, and what cannot be used is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny_ctc import CHARACTERS, RATE, noise_waves, write_tiny_ctc

from zo_common.errors import DataError
from zo_common.models.ctc.loss import CTCLoss
from zo_common.models.ctc.transcribe import transcribe_waves
from zo_common.models.load import LoadedModel, load_model
from zo_common.models.objectives import IGNORE
from zo_common.speech.audio import decode
from zo_common.speech.ctc import CTCDataset
from zo_common.speech.evaluation import evaluate, health, held_out_loss
from zo_common.speech.manifest import read_manifest
from zo_common.speech.model_kinds import speech_model
from zo_common.speech.reading import read_speech
from zo_common.speech.recordings import spread

TEXTS = ("Anna, be here!", "a good lamp", "wood")
SAMPLES = (12000, 16000, 9000)


@pytest.fixture(scope="module", params=["group", "layer"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(str(write_tiny_ctc(tmp_path_factory.mktemp("ctc") / "model", norm=request.param)))


def write(folder: Path, rows: dict[str, tuple[int, str]]) -> str:
    """Recordings of so many samples."""
    folder.mkdir(parents=True)
    for name, (samples, _) in rows.items():
        soundfile.write(folder / name, noise_waves(samples, seed=samples)[0], RATE)
    lines = ["file_name,transcription", *(f'{name},"{text}"' for name, (_, text) in rows.items())]
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return str(folder)


@pytest.fixture
def source(tmp_path: Path) -> str:
    rows = {f"{i}.wav": (n, text) for i, (n, text) in enumerate(zip(SAMPLES, TEXTS, strict=True))}
    return write(tmp_path / "train", rows)


def read(loaded: LoadedModel, source: str, need_text: bool = True, skip_bad: bool = False) -> CTCDataset:
    manifest = read_manifest(source, need_text=need_text)
    found = read_speech(manifest, loaded, skip_bad=skip_bad)
    assert isinstance(found, CTCDataset)
    return found


def test_a_loaded_model_reads_speech_as_its_reader_does(loaded: LoadedModel, source: str) -> None:
    data = read_speech(source, loaded)

    assert isinstance(data, CTCDataset)
    assert data.texts == TEXTS
    expected = read(loaded, source).batch([0, 1]).values
    np.testing.assert_array_equal(data.batch([0, 1]).values.numpy(), expected.numpy())


def test_batches_hold_normalised_waves_and_characters(loaded: LoadedModel, source: str) -> None:
    data = read(loaded, source)
    batch = data.batch([0, 2])

    assert data.texts == TEXTS
    assert batch.lengths.tolist() == [12000, 9000]
    wave = decode(Path(source) / "2.wav").astype(np.float64)
    expected = (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7)
    np.testing.assert_allclose(batch.values[1, :9000].numpy(), expected, atol=1e-5)
    assert not batch.values[1, 9000:].any()
    assert batch.labels is not None
    words = ["".join(CHARACTERS[i] for i in row[row != IGNORE].tolist()) for row in batch.labels]
    assert words == ["ANNA|BE|HERE", "WOOD"]
    assert data.seconds == sum(SAMPLES) / RATE
    assert data.length_sorted_batches(2) == [[1, 0], [2]]


def test_a_test_set_is_judged_by_loss_and_errors(loaded: LoadedModel, source: str) -> None:
    data = read(loaded, source)
    model, processor = loaded
    speech = speech_model(loaded)

    found = evaluate(speech, data)
    seen = health(speech, data)

    assert found.loss == held_out_loss(speech, data) == seen.loss
    assert held_out_loss(speech, data) == pytest.approx(float(CTCLoss(model, data.batch([1, 0, 2]))().mean()), rel=1e-6)
    assert list(found.hypotheses) == transcribe_waves(model, processor, [e.wave for e in data.examples])
    assert found.scores.utterances == 3
    assert seen.wer == found.scores.wer
    assert 0 < seen.uncertainty < np.log(len(CHARACTERS))
    assert 0 <= seen.diversity <= 1


def test_all_that_cannot_be_used_is_told(loaded: LoadedModel, tmp_path: Path) -> None:
    rows = {
        "good.wav": (9000, "wood"),
        "short.wav": (399, "a"),
        "fast.wav": (2000, "a good lamp here"),
        "twice.wav": (880, "oo"),  # two frames: none is left between equal characters
        "odd.wav": (9000, "123 ?!"),
    }
    source = write(tmp_path / "train", rows)

    with pytest.raises(DataError) as caught:
        read(loaded, source)
    assert [p.split(": ", 1)[0] for p in caught.value.problems] == [f"train/metadata.csv:{n}" for n in (3, 4, 5, 6)]
    short, fast, twice, odd = caught.value.problems
    assert "has 399 samples, expected at least 400 at 16000 Hz" in short
    assert "has 16 characters, the recording 6 frames" in fast
    assert "has 2 characters, the recording 2 frames" in twice
    assert "has no character of the model's vocabulary" in odd
    kept = read(loaded, source, skip_bad=True)
    assert (kept.texts, len(kept.skipped)) == (("wood",), 4)


def test_without_need_of_a_text_only_the_sound_must_do(loaded: LoadedModel, tmp_path: Path) -> None:
    rows = {"a.wav": (9000, ""), "b.wav": (2000, "a good lamp here"), "c.wav": (399, "")}
    source = write(tmp_path / "train", rows)

    with pytest.raises(DataError) as caught:
        read(loaded, source, need_text=False)
    assert len(caught.value.problems) == 1
    kept = read(loaded, source, need_text=False, skip_bad=True)

    assert kept.texts == ("", "")  # what was said is not even looked at
    assert kept.batch([0]).labels is not None and kept.batch([0]).labels.shape == (1, 0)


@pytest.mark.parametrize(("count", "left"), [(1, 1), (2, 2), (3, 3), (9, 3)])
def test_a_spread_of_the_examples(loaded: LoadedModel, source: str, count: int, left: int) -> None:
    assert len(spread(read(loaded, source), count)) == left
