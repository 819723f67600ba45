"""Numbers of held weights against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.learning.held_differences import batch_noise, numbers
from zo_common.models.loss_comparison import Probe

LOSSES = np.array([1.0, 1.0, 1.0])
DIFFERENCES = np.array([[0.3, 0.4, 0.2], [0.1, -0.2, 0.4], [-0.1, 0.3, 0.1]])
REFERENCE = Probe(LOSSES, DIFFERENCES, np.zeros((3, 3)))


def of(losses: np.ndarray, differences: np.ndarray) -> dict[str, float]:
    return numbers(Probe(losses, differences, np.zeros((3, 3))), REFERENCE, few=2, directions=2)


def test_the_same_numbers_have_no_error_and_are_always_taken() -> None:
    assert of(LOSSES, DIFFERENCES) == pytest.approx({"loss": 0.0, "cosine": 1.0, "difference": 0.0, "taken": 1.0})


def test_a_longer_vector_has_the_same_angle() -> None:
    found = of(LOSSES * 1.01, DIFFERENCES * 1.25)

    assert found == pytest.approx({"loss": 0.01, "cosine": 1.0, "difference": 0.25, "taken": 1.0})


def test_an_opposed_utterance_is_refused_where_it_is_chosen() -> None:
    opposed = DIFFERENCES * np.array([1.0, 1.0, -1.0])

    assert of(LOSSES, opposed)["taken"] == pytest.approx(1 / 3)  # of the three pairs, the one without it


def test_a_loss_that_is_off_is_refused_whatever_the_angle() -> None:
    assert of(LOSSES * 1.05, DIFFERENCES)["taken"] == 0.0


def test_the_noise_of_a_batch_is_that_of_its_mean() -> None:
    mean = DIFFERENCES.mean(axis=1)
    error = np.array([np.sqrt(((row - row.mean()) ** 2).sum() / 2 / 3) for row in DIFFERENCES])

    assert batch_noise(REFERENCE) == pytest.approx(np.sqrt((error**2).sum() / (mean**2).sum()))
