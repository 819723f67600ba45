"""Augmentation of a synthetic voice: stretching, which changes pitch, formants and tempo together, and filtering."""

from __future__ import annotations

import math

import numpy as np
import soxr
from numpy.typing import NDArray

Wave = NDArray[np.float32]
_BANDS = 5  # points of the filter's gain, over log frequency
_LOWEST_HZ = 60.0


def vary(wave: Wave, rate: int, generator: np.random.Generator, stretch: float, colour: float) -> Wave:
    """Return a mono wave (n,) changed as if another voice had said it.

    1. Resampled by a factor between 1/(1 + stretch) and 1 + stretch, evenly in its logarithm: longer vocal tracts
       speak lower and slower (Ko et al. 2015, "Audio augmentation for speech recognition").
    2. Filtered with a smooth random gain over log frequency, of standard deviation `colour` dB at `_BANDS` points.

    A strength of 0 draws no random numbers.
    """
    if stretch:
        factor = math.exp(generator.uniform(-1.0, 1.0) * math.log1p(stretch))
        wave = soxr.resample(wave, rate * factor, rate, quality="MQ").astype(np.float32)
    if colour:
        wave = _coloured(wave, rate, colour * generator.standard_normal(_BANDS))
    return wave


def _coloured(wave: Wave, rate: int, gains: NDArray[np.float64]) -> Wave:
    """Return the wave with gains in dB at evenly spaced log frequencies, linearly interpolated."""
    spectrum = np.fft.rfft(wave.astype(np.float64))
    hertz = np.maximum(np.fft.rfftfreq(len(wave), 1 / rate), _LOWEST_HZ)
    places = np.geomspace(_LOWEST_HZ, rate / 2, len(gains))
    decibels = np.interp(np.log(hertz), np.log(places), gains)
    changed = np.fft.irfft(spectrum * 10 ** (decibels / 20), len(wave))
    return np.clip(changed, -1.0, 1.0).astype(np.float32)
