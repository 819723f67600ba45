"""Greedy transcripts of CTC models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_ctc import BLANK, noise_waves, write_tiny_ctc

from zo_common.errors import DataError
from zo_common.models.ctc.forward import ctc_logits, prepare_waves
from zo_common.models.ctc.transcribe import transcribe_waves
from zo_common.models.load import load_model


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A layer-norm model, for which batches change nothing, and its processor."""
    directory = write_tiny_ctc(tmp_path_factory.mktemp("ctc"), norm="layer")
    return load_model(str(directory))[:2]


def test_repeats_are_joined_and_blanks_dropped(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    (wave,) = noise_waves(8000)
    with torch.inference_mode():
        classes = ctc_logits(model, *prepare_waves(processor.feature_extractor, [wave]))[0][0].argmax(dim=1).tolist()
    characters = processor.tokenizer.convert_ids_to_tokens(classes)
    changes = [c for i, c in enumerate(characters) if i == 0 or characters[i - 1] != c]
    expected = "".join(" " if c == "|" else c for c in changes if c != "<pad>").strip()

    assert BLANK in classes
    assert transcribe_waves(model, processor, [wave]) == [expected]


def test_batches_change_nothing_and_are_reported(loaded: tuple[Any, Any]) -> None:
    waves = noise_waves(4000, 8000, 6100)
    seen: list[tuple[int, int]] = []

    together = transcribe_waves(*loaded, waves, batch_size=2, on_progress=lambda done, of: seen.append((done, of)))

    assert together == transcribe_waves(*loaded, waves)
    assert seen == [(2, 3), (3, 3)]
    assert len(set(together)) == 3


def test_nothing_to_transcribe(loaded: tuple[Any, Any]) -> None:
    assert transcribe_waves(*loaded, []) == []


def test_a_click_is_refused(loaded: tuple[Any, Any]) -> None:
    with pytest.raises(DataError, match="has 100 samples"):
        transcribe_waves(*loaded, [np.ones(100, np.float32)])
