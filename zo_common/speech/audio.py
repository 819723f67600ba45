"""Decoding of recordings to mono float32 samples, by default at Whisper's 16 kHz."""

from __future__ import annotations

import io
import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from zo_common.speech.conversions import changed as _changed

SAMPLING_RATE = 16_000
SUFFIXES = (
    *(".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc", ".au", ".snd"),
    *(".w64", ".rf64", ".caf", ".sph", ".nist", ".voc"),
)
"""Suffixes of files that can be decoded."""
FOREIGN_SUFFIXES = (
    *(".m4a", ".mp4", ".aac", ".webm", ".wma", ".amr", ".3gp", ".mka", ".mkv", ".mov", ".ac3", ".m4b", ".mp2", ".ra"),
)
"""Suffixes of recordings that must be converted first."""
MAX_SECONDS = 30.0
MIN_SECONDS = 0.01  # of which a spectrogram has one frame
LOUDEST = 16.0  # 24 dB beyond full scale; 16-bit numbers that were stored as floats reach 32768
SILENCE = 1e-4  # of full scale, −80 dB: three steps of 16-bit samples
_CANCELLED = 1e-3  # of the channels' own level; below it their mean counts as silence
_HEAD = 12  # bytes that say how long a WAV file is
_STREAMED = 0x7FFFF000  # from here on, the size in a WAV file means that its writer did not know the length


class AudioProblem(ValueError):
    """A recording that cannot be used; the message is one sentence with the remedy."""


def decode(
    audio: Path | bytes,
    sampling_rate: int = SAMPLING_RATE,
    max_seconds: float = MAX_SECONDS,
    *,
    shorten: str = "cut it by 'zo-asr data segment', or list its parts with their times (docs/data.md)",
) -> npt.NDArray[np.float32]:
    """Decode samples of shape (n,) at `sampling_rate` Hz, n > 0; channels are averaged.

    This one function reads the recordings of training, evaluation and adaptation; `counted` reports conversions.

    Args:
        shorten: the remedy for a recording that is too long.

    Raises:
        AudioProblem: the recording is unreadable, cut short, empty, shorter than `MIN_SECONDS`, longer than
            `max_seconds`, silent, not finite, beyond `LOUDEST`, or its channels cancel each other.
    """
    name = name_of(audio)
    samples, rate, seconds = _read(audio, name, max_seconds)
    if len(samples) == 0:
        raise AudioProblem(f"{name} has no samples, expected speech: record it again or leave it out.")
    if len(samples) > max_seconds * rate:
        raise AudioProblem(f"{name} lasts {seconds:.2f} s, expected at most {max_seconds:g} s: {shorten}.")
    if not np.isfinite(samples).all():
        raise AudioProblem(f"{name} has NaN or infinite samples, expected numbers: convert it again from its source.")
    if len(samples) < MIN_SECONDS * rate:
        raise AudioProblem(
            f"{name} lasts {1000 * seconds:.2g} ms, expected at least {1000 * MIN_SECONDS:g}: record it again or "
            "leave it out."
        )
    if (peak := float(np.abs(samples).max())) > LOUDEST:
        raise AudioProblem(
            f"{name} has samples of up to {peak:.3g}, expected −1 … 1: divide 16-bit numbers by 32768 before they are "
            "stored as floats."
        )
    mono = samples.mean(axis=1)
    if is_silent(samples.reshape(-1)):
        raise AudioProblem(f"{name} holds only silence, expected speech: record it again or leave it out.")
    if samples.shape[1] > 1 and float(np.abs(mono).max()) < _CANCELLED * peak:
        raise AudioProblem(
            f"{name} has {samples.shape[1]} channels that cancel each other, expected one, or several that agree: keep "
            "one of them."
        )
    if rate != sampling_rate:
        mono = soxr.resample(mono, rate, sampling_rate, quality="HQ")[: int(max_seconds * sampling_rate)]
    if len(mono) == 0 or not np.isfinite(mono).all():
        raise AudioProblem(f"{name} cannot be resampled from {rate} to {sampling_rate} Hz: convert it yourself.")
    _changed(rate, sampling_rate, samples.shape[1])
    return np.ascontiguousarray(mono, dtype=np.float32)


def _read(audio: Path | bytes, name: str, max_seconds: float) -> tuple[npt.NDArray[np.float32], int, float]:
    """Read samples (n, channels), sampling rate in Hz, and the whole length in seconds."""
    with as_audio_problem(name), opened(audio, name) as file:
        # One sample more than allowed shows that it is too long, without decoding hours of it.
        samples = file.read(int(max_seconds * file.samplerate) + 1, dtype="float32", always_2d=True)
        return samples, file.samplerate, max(file.frames, len(samples)) / file.samplerate


@contextmanager
def opened(audio: Path | bytes, name: str) -> Iterator[soundfile.SoundFile]:
    """Open a recording, called `name` in messages, for reading.

    Raises:
        AudioProblem: it has no bytes, or is shorter than its header says.
        OSError, soundfile.SoundFileError: it cannot be opened.
    """
    head = audio[:_HEAD] if isinstance(audio, bytes) else _head(audio)
    if not head:
        raise AudioProblem(f"{name} has no bytes, expected a recording: copy it again or leave it out.")
    _refuse_cut_short(head, len(audio) if isinstance(audio, bytes) else audio.stat().st_size, name)
    # opened as a stream: from a name soundfile would derive a format, instead of from the content
    stream = io.BytesIO(audio) if isinstance(audio, bytes) else os.fdopen(os.open(audio, os.O_RDONLY), "rb")
    with stream, soundfile.SoundFile(stream) as file:
        yield file


def name_of(audio: Path | bytes) -> str:
    """Return the name of a recording in messages."""
    return f"'{audio.name}'" if isinstance(audio, Path) else "the recording"


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD)


def _refuse_cut_short(head: bytes, size: int, name: str) -> None:
    """Raise AudioProblem if a WAV file of `size` bytes is shorter than its header says (RIFF 1.0)."""
    promised = int.from_bytes(head[4:8], "little") + 8
    if head[:4] == b"RIFF" and size < promised < _STREAMED:
        raise AudioProblem(f"{name} ends after {size} of {promised} bytes, expected all: copy it again.")


def is_silent(wave: npt.NDArray[np.float32]) -> bool:
    """Return whether all samples are within −80 dB of full scale of the mean; an empty wave is silent."""
    if not len(wave):
        return True
    middle = wave.mean(dtype=np.float64)
    return float(max(wave.max() - middle, middle - wave.min())) < SILENCE


@contextmanager
def as_audio_problem(name: str) -> Iterator[None]:
    """Convert errors of the system and of soundfile on a recording, called `name`, to an AudioProblem."""
    try:
        yield
    except OSError as error:
        raise AudioProblem(f"{name} cannot be read ({error.strerror}): check the file and its rights.") from None
    except soundfile.SoundFileError as error:
        reason = str(getattr(error, "error_string", error)).rstrip(".")
        raise AudioProblem(
            f"{name} cannot be decoded ({reason}), expected WAV, FLAC, Ogg or MP3: convert it or copy it again."
        ) from None


def local_audio(folder: Path, name: object, *, column: str = "file_name") -> Path | str:
    """Return the path of a recording that a table in `folder` names, or the fault of the name as a string."""
    if not isinstance(name, str) or not name.strip():
        return _no_name(name, column)
    for spelled in _spellings(name):
        # Lexical: links inside the folder may lead to where the recordings are stored.
        if Path(spelled).is_absolute() or Path(os.path.normpath(spelled)).parts[:1] == (os.pardir,):
            return f"got {column} '{name}', expected a path inside the folder of the table: move the recording there."
        if _is_file(folder / spelled):
            return folder / spelled
    return _not_there(column, name)


def stated_audio(folders: Sequence[Path], name: object, *, column: str) -> Path | str:
    """As `local_audio`, for a table that may name recordings anywhere, also with ~; relative names are in `folders`."""
    if not isinstance(name, str) or not name.strip():
        return _no_name(name, column)
    for spelled in _spellings(name):
        whole = os.path.expanduser(spelled)  # noqa: PTH111 - no error for a user who does not exist
        for folder in folders:
            if _is_file(folder / whole):
                return folder / whole
    return _not_there(column, name)


def _no_name(name: object, column: str) -> str:
    got = f"{column} of type {type(name).__name__}" if name and not isinstance(name, str) else f"no {column}"
    return f"got {got}, expected the path of a recording: fill it in or delete the row."


def _not_there(column: str, name: str) -> str:
    return f"got {column} '{name[:300]}', expected a file that exists: correct the name or delete the row."


def _is_file(path: Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113 - false, not an error, for a name that no file can have


def _spellings(name: str) -> Iterator[str]:
    """Yield a name as it is written, then in the spellings of other programs and systems.

    These are names with spaces around them, with Windows' separators, and with composed or decomposed accents.
    """
    bare = name.strip()
    for plain in dict.fromkeys((name, bare, bare.replace("\\", "/"))):
        yield from dict.fromkeys((plain, unicodedata.normalize("NFC", plain), unicodedata.normalize("NFD", plain)))


def stored_audio(value: Mapping[str, Any] | None) -> Path | bytes | str:
    """Return bytes or path of an undecoded Audio value of `datasets`, or its fault as a string."""
    content, path = (value.get("bytes"), value.get("path")) if value else (None, None)
    if content is not None:
        return bytes(content)
    if path and Path(path).is_file():
        return Path(path)
    got = f"the path '{path}'" if path else "no audio"
    return f"got {got}, expected bytes or a file that exists: save the data set again where the recordings are."
