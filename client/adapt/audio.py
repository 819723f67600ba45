"""Recordings to be recognised: read as they are or refused, told from silence, and cut at pauses."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from zo_common.speech.audio import SAMPLING_RATE, AudioProblem, refuse_cut_short, told_in_a_sentence

SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au")
_LOUDEST = 1e6  # whole numbers of 16 bits that were stored as floats are below; what is above is damaged
PIECE_SECONDS = 25.0
SLACK_SECONDS = 2.5  # a cut may be this far from where equal pieces would be cut, so no piece exceeds 30 s
_PAUSE_SECONDS = 0.1


def find_recordings(paths: list[Path]) -> tuple[list[Path], list[str]]:
    """All recordings, those of folders at any depth and in the order of their names, and what is wrong with a path."""
    found: list[Path] = []
    problems: list[str] = []
    for path in paths:
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not path.is_dir():
            found.append(path)
        elif inside:
            found += inside
        else:
            problems.append(f"folder '{path}' holds no recording ({', '.join(SUFFIXES)}): name another one.")
    return found, problems


def read_wave(
    path: Path, *, rate: int = SAMPLING_RATE, convert: bool = False, max_seconds: float = 3600.0
) -> NDArray[np.float32]:
    """Mono samples (n,) at `rate` Hz; n is 0 for a recording without samples.

    A higher sampling rate is brought down, which loses nothing that the model could hear.

    Args:
        convert: average channels and resample from lower rates instead of refusing them.

    Raises:
        AudioProblem: it cannot be read or decoded, is longer than `max_seconds`, has several channels, a lower rate,
            or samples that are not finite or far out of range.
    """
    samples, found = _read(path, rate, convert, max_seconds)
    if not np.isfinite(samples).all():
        raise AudioProblem(f"'{path.name}' has NaN or infinite samples, expected numbers: convert it again.")
    if len(samples) and float(np.abs(samples).max()) > _LOUDEST:
        raise AudioProblem(
            f"'{path.name}' has samples of up to {float(np.abs(samples).max()):.3g}, expected −1 … 1: convert it again."
        )
    mono = samples.mean(axis=1) if samples.shape[1] > 1 else samples[:, 0]
    if found != rate and len(mono):
        mono = soxr.resample(mono, found, rate, quality="HQ")
    return np.ascontiguousarray(mono, dtype=np.float32)


def _read(path: Path, rate: int, convert: bool, max_seconds: float) -> tuple[NDArray[np.float32], int]:
    """Samples (n, channels) and their rate in Hz."""
    name = f"'{path.name}'"
    with told_in_a_sentence(name):
        data = path.read_bytes()
        if not data:
            raise AudioProblem(f"{name} has no bytes, expected a recording: copy it again.")
        refuse_cut_short(data, name)
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if not convert and file.channels > 1:
                raise AudioProblem(
                    f"{name} has {file.channels} channels, expected one: pick the speaker's, or pass --convert to "
                    "average them."
                )
            if not convert and file.samplerate < rate:
                raise AudioProblem(
                    f"{name} is sampled at {file.samplerate} Hz, expected {rate} or more: record it so, or pass "
                    "--convert to resample it (the band that is missing stays missing)."
                )
            samples = file.read(int(max_seconds * file.samplerate) + 1, dtype="float32", always_2d=True)
            if len(samples) > max_seconds * file.samplerate:
                raise AudioProblem(
                    f"{name} lasts {max(file.frames, len(samples)) / file.samplerate:.0f} s, expected at most "
                    f"{max_seconds:g}: cut it at a pause, or raise --max-seconds."
                )
            return samples, file.samplerate


def split(wave: NDArray[np.float32], rate: int = SAMPLING_RATE) -> list[NDArray[np.float32]]:
    """A wave of up to 30 s as it is; a longer one in near-equal pieces of at most 30 s, cut at the quietest places.

    1. So many equal pieces that none exceeds `PIECE_SECONDS`.
    2. Every boundary moves to the middle of the quietest 0.1 s within `SLACK_SECONDS` of it; where there is no pause,
       a word is cut.
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
    """The middle of the `window` samples of least energy; of several, those nearest to the middle of the wave."""
    energy = np.concatenate([[0.0], np.cumsum(np.square(wave, dtype=np.float64))])
    sums = energy[window:] - energy[:-window]
    starts = np.flatnonzero(sums <= sums.min())
    return int(starts[np.abs(starts - (len(wave) - window) // 2).argmin()]) + window // 2
