"""Speech synthesis with espeak-ng, called through ctypes: the same text and speaker always give the same samples."""

from __future__ import annotations

import _ctypes
import ctypes
import importlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soxr

from zo_common.errors import ConfigError

ACCENTS: dict[str, str] = {
    "west-midlands": "en-gb-x-gbcwmd",
    "scotland": "en-gb-scotland",
    "caribbean": "en-029",
    "lancashire": "en-gb-x-gbclan",
    "new-york": "en-us-nyc",
    "us": "en-us",
}
"""Friendly accent name to espeak-ng voice id."""

RATE_RANGE = (80, 450)
"""Speaking rates espeak-ng accepts, in words per minute."""

PITCH_RANGE = (0, 99)
"""Base pitches espeak-ng accepts, on its own scale."""

# Constants of espeak-ng's speak_lib.h.
_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_DONT_EXIT = 0x8000
_CHARS_UTF8 = 1
_POSITION_CHARACTER = 1
_PARAMETER_RATE, _PARAMETER_VOLUME, _PARAMETER_PITCH, _PARAMETER_RANGE = 1, 2, 3, 4
_PARAMETER_PUNCTUATION, _PARAMETER_CAPITALS, _PARAMETER_WORDGAP = 5, 6, 7

_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
_NOISE_SEED = 1
_LOCK = threading.Lock()


@dataclass(frozen=True)
class Speaker:
    """One synthetic voice: accent (a key of `ACCENTS`), espeak-ng variant, rate in words/min, pitch on espeak's scale.

    Raises ConfigError where a value is unknown or out of range.
    """

    accent: str
    variant: str
    rate: int = 160
    pitch: int = 50

    def __post_init__(self) -> None:
        if self.accent not in ACCENTS:
            raise ConfigError(f"Unknown accent {self.accent!r}: choose one of {', '.join(ACCENTS)}.")
        if self.variant not in list_variants():
            raise ConfigError(
                f"Unknown voice variant {self.variant!r}: choose one of those that "
                "simulations.speech.espeak.list_variants() names, such as m1 or f3."
            )
        for name, value, (low, high) in (("rate", self.rate, RATE_RANGE), ("pitch", self.pitch, PITCH_RANGE)):
            if not low <= value <= high:
                raise ConfigError(f"Speaker {name} is {value}, expected {low} to {high}: choose a value in that range.")

    @property
    def id(self) -> str:
        """Accent and variant, such as "west-midlands-m1"."""
        return f"{self.accent}-{self.variant}"


def list_variants() -> list[str]:
    """Return names of the voice variants that can be used, sorted. Raises ConfigError where the package is missing."""
    return list(_variants())


@cache
def _variants() -> tuple[str, ...]:
    folder = Path(_loader().get_data_path()) / "voices" / "!v"
    # espeak-ng cuts a voice name at a space, so a variant with one in its name cannot be selected.
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_file() and " " not in path.name))


def _loader() -> Any:
    try:
        return importlib.import_module("espeakng_loader")
    except ImportError as error:
        raise ConfigError(
            "Speech synthesis needs the package espeakng-loader, which is not installed: "
            "run pip install 'federated-zo-asr[demo]'."
        ) from error


@contextmanager
def _library() -> Iterator[tuple[ctypes.CDLL, int]]:
    """Yield a freshly loaded and initialised library and its native sampling rate in Hz; unloaded at the end.

    The wave generator carries phase and filter state from one utterance to the next, and terminating the library
    does not clear it. Only unloading does, at a few milliseconds each time, and only then does an utterance not
    depend on those before it. (Where another package keeps the same library file loaded, that state remains.)
    """
    loader = _loader()
    path, data = str(loader.get_library_path()), str(loader.get_data_path())
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        raise ConfigError(f"Cannot load the espeak-ng library {path} ({error}): reinstall espeakng-loader.") from error
    try:
        rate = int(library.espeak_Initialize(_OUTPUT_SYNCHRONOUS, 0, data.encode(), _INITIALIZE_DONT_EXIT))
        if rate <= 0:
            raise ConfigError(
                f"espeak-ng cannot read its data in {data} (status {rate}): "
                "reinstall espeakng-loader, in a folder whose path has fewer than 150 characters."
            )
        try:
            yield library, rate
        finally:
            library.espeak_Terminate()
    finally:
        _unload(library)


def _unload(library: ctypes.CDLL) -> None:
    if sys.platform == "win32":
        _ctypes.FreeLibrary(library._handle)
    else:
        _ctypes.dlclose(library._handle)


def _configure(library: ctypes.CDLL, speaker: Speaker) -> None:
    voice = f"{ACCENTS[speaker.accent]}+{speaker.variant}"
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise ConfigError(f"espeak-ng has no voice {voice!r}: reinstall espeakng-loader, or choose another speaker.")
    settings = {
        _PARAMETER_RATE: speaker.rate,
        _PARAMETER_VOLUME: 100,
        _PARAMETER_PITCH: speaker.pitch,
        _PARAMETER_RANGE: 50,
        _PARAMETER_PUNCTUATION: 0,
        _PARAMETER_CAPITALS: 0,
        _PARAMETER_WORDGAP: 0,
    }
    for parameter, value in settings.items():
        library.espeak_SetParameter(parameter, value, 0)
    # Breathy voices mix in noise, which is otherwise seeded by the clock. Older versions lack the call.
    if hasattr(library, "espeak_ng_SetRandSeed"):
        library.espeak_ng_SetRandSeed(ctypes.c_long(_NOISE_SEED))


def _native(text: str, speaker: Speaker) -> tuple[npt.NDArray[np.int16], int]:
    """Return samples at espeak-ng's own rate, int16 of shape (samples,), and that rate in Hz."""
    chunks: list[npt.NDArray[np.int16]] = []

    def collect(samples: Any, count: int, _events: Any) -> int:
        if samples and count > 0:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    callback = _CALLBACK(collect)
    encoded = text.encode()
    with _LOCK, _library() as (library, rate):
        library.espeak_SetSynthCallback(callback)
        _configure(library, speaker)
        size, zero, flags = ctypes.c_size_t(len(encoded) + 1), ctypes.c_uint(0), ctypes.c_uint(_CHARS_UTF8)
        status = library.espeak_Synth(encoded, size, zero, _POSITION_CHARACTER, zero, flags, None, None)
        library.espeak_Synchronize()
    if status != 0 or not chunks:
        raise ConfigError(f"espeak-ng made no sound of {text!r} (status {status}): give it a text with words in it.")
    return np.concatenate(chunks), rate


def synthesize(text: str, speaker: Speaker, sampling_rate: int = 16_000) -> npt.NDArray[np.float32]:
    """Speak `text`: float32 samples in [-1, 1] of shape (samples,) at `sampling_rate` Hz, the same at every call.

    Raises ConfigError where the text has nothing to say, the rate is not positive, or espeak-ng is missing.
    """
    if sampling_rate <= 0:
        raise ConfigError(f"The sampling rate is {sampling_rate} Hz, expected a positive number, such as 16000.")
    if not text.strip() or "\0" in text:
        raise ConfigError(f"Cannot speak the text {text!r}: give it a text with words in it.")
    samples, native_rate = _native(text, speaker)
    wave: npt.NDArray[np.float32] = samples.astype(np.float32) / np.float32(32768)
    if native_rate != sampling_rate:
        wave = np.asarray(soxr.resample(wave, native_rate, sampling_rate), dtype=np.float32)
    # Resampling can overshoot full scale.
    np.clip(wave, -1.0, 1.0, out=wave)
    return wave
