"""Recordings to be recognised: search, reading with the checks of training, and cuts at pauses."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zo_common.speech.audio import FOREIGN_SUFFIXES, SAMPLING_RATE, SUFFIXES, AudioProblem, decode

PIECE_SECONDS = 25.0
SLACK_SECONDS = 2.5  # maximum distance of a cut from that of equal pieces, so no piece exceeds 30 s
_PAUSE_SECONDS = 0.1


def find_recordings(paths: list[Path]) -> tuple[list[Path], list[str]]:
    """Return all recordings, also in folders at any depth, sorted by name, and the faults of paths.

    Recordings of a folder in formats that cannot be decoded are reported as one such fault.
    """
    found: list[Path] = []
    problems: list[str] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        named = (p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES + FOREIGN_SUFFIXES)
        files = sorted(p for p in named if p.is_file() or not p.exists())  # reading a link to nothing reports it
        inside = [p for p in files if p.suffix.lower() in SUFFIXES]
        found += inside
        foreign = Counter(p.suffix.lower() for p in files if p.suffix.lower() in FOREIGN_SUFFIXES)
        if foreign:
            kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(foreign.items()))
            problems.append(
                f"{foreign.total()} recordings of folder '{path}' are left out, {kinds}, expected one of "
                f"{', '.join(SUFFIXES)}: convert them to FLAC, for example with ffmpeg."
            )
        elif not inside:
            problems.append(f"folder '{path}' holds no recording ({', '.join(SUFFIXES)}): name another one.")
    return found, problems


def read_wave(path: Path, *, rate: int = SAMPLING_RATE, max_seconds: float = 3600.0) -> NDArray[np.float32]:
    """Read mono samples (n,) at `rate` Hz, n > 0, by `decode`, with the checks of training.

    Raises:
        AudioProblem: as `decode`.
    """
    return decode(path, rate, max_seconds, shorten="cut it at a pause, or raise --max-seconds")


def refuse_short(wave: NDArray[np.float32], least: int, rate: int, name: str = "the utterance") -> None:
    """Raise AudioProblem for a recording, called `name`, of fewer than `least` samples, one frame of the model."""
    if len(wave) < least:
        raise AudioProblem(
            f"{name} has {len(wave)} samples, expected at least {least} at {rate} Hz, the model's receptive field: "
            "record more of it."
        )


def split(wave: NDArray[np.float32], rate: int = SAMPLING_RATE) -> list[NDArray[np.float32]]:
    """Split a wave of more than 30 s into near-equal pieces of at most 30 s, cut at the quietest points.

    1. The number of pieces is such that none exceeds `PIECE_SECONDS` if they are equal.
    2. Every boundary moves to the middle of the quietest 0.1 s within `SLACK_SECONDS` of it; without a pause there, a
       word is cut.
    """
    longest = round((PIECE_SECONDS + 2 * SLACK_SECONDS) * rate)
    if len(wave) <= longest:
        return [wave]
    count = -(-len(wave) // round(PIECE_SECONDS * rate))
    slack = round(SLACK_SECONDS * rate)
    cuts = [0]
    for number in range(1, count):
        first = number * len(wave) // count - slack
        cuts.append(first + _quietest(wave[first : first + 2 * slack], round(_PAUSE_SECONDS * rate)))
    return [wave[start:end] for start, end in zip(cuts, [*cuts[1:], len(wave)], strict=True)]


def _quietest(wave: NDArray[np.float32], window: int) -> int:
    """Return the middle of the `window` samples of minimum energy; of several, those nearest to the wave's middle."""
    energy = np.concatenate([[0.0], np.cumsum(np.square(wave, dtype=np.float64))])
    sums = energy[window:] - energy[:-window]
    starts = np.flatnonzero(sums <= sums.min())
    return int(starts[np.abs(starts - (len(wave) - window) // 2).argmin()]) + window // 2
