"""Transcripts against references: what is counted, for models of both families."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_ctc import noise_waves, write_tiny_ctc

from zo_common.models.ctc.transcribe import transcribe_waves
from zo_common.models.load import load_model
from zo_common.speech.evaluation import evaluate_texts, evaluate_waves
from zo_common.speech.metrics import ErrorCounts


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A CTC model with a layer norm, and its processor."""
    return load_model(str(write_tiny_ctc(tmp_path_factory.mktemp("ctc"), norm="layer")))[:2]


@pytest.fixture
def whisper(tiny_whisper_dir: Path) -> tuple[Any, Any]:
    return load_model(str(tiny_whisper_dir))[:2]


def test_errors_are_counted(loaded: tuple[Any, Any]) -> None:
    waves = noise_waves(4000, 8000)
    texts = transcribe_waves(*loaded, waves)

    scores, hypotheses = evaluate_waves(*loaded, waves, [texts[0], f"{texts[1]} more"])

    assert hypotheses == texts
    assert scores.utterances == 2
    assert scores.raw_words == ErrorCounts(deletions=1, length=sum(len(text.split()) for text in texts) + 1)


def test_nothing_to_transcribe(whisper: tuple[Any, Any]) -> None:
    scores, texts = evaluate_texts(*whisper, [], [])

    assert texts == []
    assert (scores.utterances, scores.wer) == (0, 0.0)


def test_references_must_pair_up_with_recordings(whisper: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match="zip"):
        evaluate_texts(*whisper, [torch.zeros(80, 3000)], ["one", "two"])
