"""Detection of speech in a recording by its level."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from zo_common.speech.times import Part

_FRAME = 0.02  # seconds
_SHORTEST = 0.1  # seconds of a pause; closures of plosives are shorter
_BELOW_SPEECH = 35.0  # dB below the loudest frames: a pause, without noise
_LEAST_BELOW = 15.0  # dB; louder frames are speech, even if pauses are a small part of the recording
_ABOVE_NOISE = 3.0  # dB
_SILENT = -100.0  # dB of full scale, for digital zeros


def spoken_parts(wave: NDArray[np.float32], rate: int) -> list[Part]:
    """Return parts of speech between pauses of 0.1 s and more, in seconds, without texts.

    A frame of 20 ms belongs to a pause if its level is 15 dB below the recording's loudest twentieth and less than 3 dB
    above its quietest tenth, or 35 dB below the loudest.
    """
    size = round(_FRAME * rate)
    frames = wave[: len(wave) // size * size].reshape(-1, size)
    if not len(frames):
        return []
    power = np.square(frames, dtype=np.float64).mean(axis=1)
    levels = np.maximum(10 * np.log10(np.maximum(power, 1e-30)), _SILENT)
    quiet, loud = np.percentile(levels, (10, 95))
    audible = levels >= max(min(quiet + _ABOVE_NOISE, loud - _LEAST_BELOW), loud - _BELOW_SPEECH)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], audible, [False]]).astype(np.int8)))
    found: list[Part] = []
    for start, end in (edges.reshape(-1, 2) * size / rate).tolist():
        if found and start - found[-1].end < _SHORTEST:
            found[-1] = Part(found[-1].start, end, "")
        else:
            found.append(Part(start, end, ""))
    return found
