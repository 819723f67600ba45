"""Voices varied: what stretching and colouring do to a tone, and that the same draw gives the same samples."""

from __future__ import annotations

import numpy as np
import pytest

from simulations.speech.augment import vary

RATE = 16_000


def _tone(hertz: float, seconds: float = 1.0) -> np.ndarray:
    time = np.arange(round(RATE * seconds)) / RATE
    return (0.3 * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def _pitch(wave: np.ndarray) -> float:
    return float(np.fft.rfftfreq(len(wave), 1 / RATE)[np.abs(np.fft.rfft(wave)).argmax()])


def test_stretching_moves_length_and_pitch_by_the_same_factor_within_bounds() -> None:
    for seed in range(20):
        varied = vary(_tone(440.0), RATE, np.random.default_rng(seed), stretch=0.2, colour=0.0)
        factor = RATE / len(varied)
        assert 1 / 1.2 - 1e-3 <= factor <= 1.2 + 1e-3
        assert _pitch(varied) == pytest.approx(440.0 * factor, rel=0.01)


def test_colour_changes_levels_and_keeps_pitch_and_length() -> None:
    tones = [vary(_tone(1000.0), RATE, np.random.default_rng(seed), stretch=0.0, colour=6.0) for seed in range(40)]
    levels = 20 * np.log10([np.std(tone) / np.std(_tone(1000.0)) for tone in tones])
    assert {len(tone) for tone in tones} == {RATE}
    assert all(_pitch(tone) == pytest.approx(1000.0, abs=1.0) for tone in tones)
    assert 2.0 < np.std(levels) < 8.0  # between two places the gains are averages
    assert max(np.abs(tone).max() for tone in tones) <= 1.0


def test_the_same_draw_is_the_same_voice() -> None:
    once, again, other = (vary(_tone(300.0), RATE, np.random.default_rng(s), 0.2, 6.0) for s in (1, 1, 2))
    assert np.array_equal(once, again)
    assert len(once) != len(other) or not np.array_equal(once, other)


def test_nothing_asked_for_is_nothing_changed() -> None:
    assert np.array_equal(vary(_tone(300.0), RATE, np.random.default_rng(0), 0.0, 0.0), _tone(300.0))
