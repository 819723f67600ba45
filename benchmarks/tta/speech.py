"""Speech to adapt to: sentences and voices that the small CTC model never met, clean, disturbed, or in another accent.

Noise is white and added to samples in [−1, 1], as SUTA does (arXiv 2203.14222); its numbers are standard deviations.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from simulations.models.pretrain_ctc import Recipe
from simulations.speech.corpus import corpus_speakers, in_room
from simulations.speech.espeak import synthesize
from simulations.speech.sentences import split_sentences

Wave = NDArray[np.float32]
RATE = 16_000
NOISE = {"noise-0.005": 0.005, "noise-0.01": 0.01}
ACCENTS = ("scotland", "west-midlands")
CONDITIONS = ("clean", *NOISE, "telephone", *ACCENTS)
TELEPHONE_HZ = (300.0, 3400.0)
_EDGE_HZ = 60.0  # of the telephone band's flanks
SEEDS = 3


@dataclass(frozen=True, eq=False)
class Spoken:
    """One utterance: mono float32 (n,) at `RATE`, what is said, and by whom."""

    wave: Wave = field(repr=False)
    text: str
    speaker: str


def speech(condition: str, seed: int, count: int, split: str = "test") -> list[Spoken]:
    """Return up to `count` utterances of a condition; each of `SEEDS` seeds has others of the test split.

    Sentences and voices of a split are those that `simulations.models.pretrain_ctc` keeps for it; another accent is
    read by the same voices. A seed also draws its own noise.
    """
    accent = condition if condition in ACCENTS else "us"
    shares = SEEDS if split == "test" else 1
    chosen = _clean(accent, split)[seed % shares :: shares][:count]
    return [replace(one, wave=_disturbed(one.wave, condition, f"{seed}/{one.text}")) for one in chosen]


@cache
def _clean(accent: str, split: str) -> Sequence[Spoken]:
    """Return all utterances of a split in one accent; neighbours and those of one share differ in voice."""
    config = replace(Recipe().corpus, accent=accent)
    counts = [config.utterances_of(name) for name in ("train", "dev", "test")]
    texts = dict(zip(("train", "dev", "test"), split_sentences(*counts, config.seed), strict=True))[split]
    voices = corpus_speakers(config)[split]
    found = []
    for index, text in enumerate(texts):
        voice = voices[index // SEEDS % len(voices)]
        wave = in_room(synthesize(text, voice, RATE), config, key=f"{voice.id}/{index}")
        found.append(Spoken(wave, text, voice.id))
    return found


def _disturbed(wave: Wave, condition: str, key: str) -> Wave:
    if condition in NOISE:
        generator = np.random.Generator(np.random.PCG64(zlib.crc32(f"{condition}/{key}".encode())))
        noisy = wave + NOISE[condition] * generator.standard_normal(len(wave))
        return np.clip(noisy, -1.0, 1.0).astype(np.float32)
    return telephone(wave) if condition == "telephone" else wave


def telephone(wave: Wave) -> Wave:
    """Return the band from 300 to 3400 Hz, with raised-cosine flanks."""
    spectrum = np.fft.rfft(wave.astype(np.float64))
    hertz = np.fft.rfftfreq(len(wave), 1 / RATE)
    low, high = TELEPHONE_HZ
    inside = np.minimum(hertz - low, high - hertz) / _EDGE_HZ
    gain = 0.5 - 0.5 * np.cos(np.pi * np.clip(inside + 0.5, 0.0, 1.0))
    return np.fft.irfft(spectrum * gain, len(wave)).astype(np.float32)
