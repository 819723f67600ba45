"""A synthetic dialect speech corpus on disk, in the audiofolder layout that the `datasets` package reads."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import shutil
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from simulations.speech.espeak import ACCENTS, Speaker, synthesize
from simulations.speech.sentences import split_sentences
from zo_common.binary.locked import locked
from zo_common.errors import ConfigError

SPLITS = ("train", "dev", "test")
COLUMNS = ("file_name", "transcription", "speaker", "accent")
_RECORD = "corpus.json"
_PARTIAL = "corpus.json.partial"
_FORMAT = 1


@dataclass(frozen=True)
class CorpusConfig:
    """Settings of a corpus; speakers are espeak-ng variant names, rates are in words/min, sampling rate in Hz.

    A speaker of another accent than `accent` is written "accent/variant", such as "caribbean/m3".

    `utterances_per_speaker` is for training; `dev_utterances` and `test_utterances` are totals, shared out evenly
    among that split's speakers. `lead_seconds` and `tail_seconds` of room tone surround the speech, over white noise
    at `noise_dbfs`: a recogniser trained on real recordings loses the first words of speech that starts at sample 0.
    Raises ConfigError where splits share a speaker or a number is out of range.
    """

    accent: str = "west-midlands"
    seed: int = 0
    train_speakers: tuple[str, ...] = ("m1", "f2", "m3", "Annie", "m5", "Diogo", "m7", "Gene")
    dev_speakers: tuple[str, ...] = ("m2", "f3")
    test_speakers: tuple[str, ...] = ("m6", "f4", "m8", "f5")
    utterances_per_speaker: int = 16
    dev_utterances: int = 48
    test_utterances: int = 96
    rate_range: tuple[int, int] = (145, 180)
    pitch_range: tuple[int, int] = (35, 65)
    lead_seconds: float = 0.5
    tail_seconds: float = 0.3
    noise_dbfs: float = -50.0
    sampling_rate: int = 16_000

    def __post_init__(self) -> None:
        if self.accent not in ACCENTS:
            raise ConfigError(f"Unknown accent {self.accent!r}: choose one of {', '.join(ACCENTS)}.")
        everyone = [*self.train_speakers, *self.dev_speakers, *self.test_speakers]
        repeated = sorted({name for name in everyone if everyone.count(name) > 1})
        if repeated:
            raise ConfigError(
                f"Speakers {', '.join(repeated)} occur more than once: give every split its own speakers."
            )
        for split in SPLITS:
            speakers, total = len(self.speakers_of(split)), self.utterances_of(split)
            if total < speakers or speakers == 0:
                raise ConfigError(
                    f"The {split} split has {speakers} speakers and {total} utterances: "
                    "give it at least one speaker, and at least one utterance for each."
                )
        for name, (low, high) in (("rate_range", self.rate_range), ("pitch_range", self.pitch_range)):
            if low > high:
                raise ConfigError(f"{name} is {low} to {high}: give the lower end first.")
        if min(self.lead_seconds, self.tail_seconds) < 0 or self.noise_dbfs > 0:
            raise ConfigError(
                "lead_seconds and tail_seconds must not be negative, nor noise_dbfs positive: change them."
            )
        if self.sampling_rate <= 0:
            raise ConfigError(
                f"The sampling rate is {self.sampling_rate} Hz, expected a positive number, such as 16000."
            )

    def speakers_of(self, split: str) -> tuple[str, ...]:
        """Return variant names of a split: "train", "dev" or "test"."""
        return {"train": self.train_speakers, "dev": self.dev_speakers, "test": self.test_speakers}[split]

    def utterances_of(self, split: str) -> int:
        """Return the number of utterances of a split, over all its speakers."""
        train = self.utterances_per_speaker * len(self.train_speakers)
        return {"train": train, "dev": self.dev_utterances, "test": self.test_utterances}[split]


@dataclass(frozen=True)
class Corpus:
    """A corpus on disk: its directory, and per split the speaker ids, utterance count and seconds of audio.

    `reused` is true if an earlier call wrote it.
    """

    directory: Path
    accent: str
    speakers: dict[str, tuple[str, ...]]
    utterances: dict[str, int]
    seconds: dict[str, float]
    reused: bool


def corpus_speakers(config: CorpusConfig) -> dict[str, tuple[Speaker, ...]]:
    """Return the speakers of every split, with their rate and pitch, which depend on seed and variant alone.

    Raises ConfigError where espeak-ng lacks a variant or is not installed.
    """
    return {split: tuple(_speaker(config, variant) for variant in config.speakers_of(split)) for split in SPLITS}


def _speaker(config: CorpusConfig, variant: str) -> Speaker:
    rng = random.Random(f"{config.seed}/{variant}")
    rate, pitch = rng.randint(*config.rate_range), rng.randint(*config.pitch_range)
    accent, _, name = variant.rpartition("/")
    return Speaker(accent=accent or config.accent, variant=name, rate=rate, pitch=pitch)


def write_corpus(directory: Path, config: CorpusConfig, progress: Callable[[int, int], None] | None = None) -> Corpus:
    """Write the corpus to `directory`, or reuse it where the same configuration was completely written before.

    Files are `<split>/<speaker>/0000.wav` (16-bit PCM, mono) and `<split>/metadata.csv`. `progress` is called with
    the utterances written and their total. Another process that writes the same corpus is waited for.
    Raises ConfigError where the directory holds something else, and OSError where the disk is full.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    with locked(directory, kept=False):
        return _write_or_reuse(directory, config, progress)


def _write_or_reuse(directory: Path, config: CorpusConfig, progress: Callable[[int, int], None] | None) -> Corpus:
    wanted = _signature(config)
    found = _read_record(directory)
    if found is not None and found.get("config") == wanted and _is_whole(directory, config):
        return _summary(directory, config, found["seconds"], reused=True)
    speakers = corpus_speakers(config)
    _clear(directory)
    train_count, dev_count, test_count = (config.utterances_of(split) for split in SPLITS)
    train, dev, test = split_sentences(train_count, dev_count, test_count, config.seed)
    total, done, seconds = len(train) + len(dev) + len(test), 0, {}
    for split, texts in zip(SPLITS, (train, dev, test), strict=True):
        rows, samples = [], 0
        for row, speaker in _plan(texts, speakers[split]):
            samples += _write_utterance(directory / split / row["file_name"], row["transcription"], speaker, config)
            rows.append(row)
            done += 1
            if progress is not None:
                progress(done, total)
        _write_metadata(directory / split / "metadata.csv", rows)
        seconds[split] = samples / config.sampling_rate
    synthesizer = f"espeakng-loader {version('espeakng-loader')}"
    _write_record(directory, {"config": wanted, "seconds": seconds, "synthesizer": synthesizer})
    return _summary(directory, config, seconds, reused=False)


def _plan(texts: Sequence[str], speakers: Sequence[Speaker]) -> list[tuple[dict[str, str], Speaker]]:
    """Return metadata rows, sorted by speaker; texts are distributed in turn, so counts differ by at most one."""
    plan = []
    for index, speaker in enumerate(speakers):
        for number, text in enumerate(texts[index :: len(speakers)]):
            name = f"{speaker.id}/{number:04d}.wav"
            row = {"file_name": name, "transcription": text, "speaker": speaker.id, "accent": speaker.accent}
            plan.append((row, speaker))
    return plan


def in_room(speech: npt.NDArray[np.float32], config: CorpusConfig, key: str) -> npt.NDArray[np.float32]:
    """Return speech of shape (samples,) with room tone around it and added noise, deterministic for seed and key."""
    lead, tail = (round(seconds * config.sampling_rate) for seconds in (config.lead_seconds, config.tail_seconds))
    padded = np.pad(speech, (lead, tail))
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(f"{config.seed}/{key}".encode())))
    noise = rng.standard_normal(len(padded)) * 10 ** (config.noise_dbfs / 20)
    return np.clip(padded + noise, -1.0, 1.0).astype(np.float32)


def _write_utterance(path: Path, text: str, speaker: Speaker, config: CorpusConfig) -> int:
    speech = synthesize(text, speaker, config.sampling_rate)
    wave = in_room(speech, config, key=f"{speaker.id}/{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()  # soundfile does not say what the system's error was
    soundfile.write(file, wave, config.sampling_rate, format="WAV", subtype="PCM_16")
    try:
        path.write_bytes(file.getvalue())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    return len(wave)


def _write_metadata(path: Path, rows: Sequence[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _signature(config: CorpusConfig) -> dict[str, Any]:
    """Return the configuration as JSON values, with the version of the layout."""
    signature: dict[str, Any] = json.loads(json.dumps({"format": _FORMAT, **asdict(config)}))
    return signature


def _read_record(directory: Path) -> dict[str, Any] | None:
    try:
        record = json.loads((directory / _RECORD).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("seconds"), dict) else None


def _is_whole(directory: Path, config: CorpusConfig) -> bool:
    """Return whether no recording or table has been deleted since the corpus was written; contents are not read."""
    return all(
        (directory / split / "metadata.csv").is_file()
        and sum(1 for _ in (directory / split).glob("*/*.wav")) == config.utterances_of(split)
        for split in SPLITS
    )


def _write_record(directory: Path, record: dict[str, Any]) -> None:
    # Written last and atomically: its presence shows that everything else is complete.
    temporary = directory / _PARTIAL
    temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, directory / _RECORD)


def _clear(directory: Path) -> None:
    """Remove an earlier or interrupted corpus and mark the directory as being written.

    Only a directory with our record or mark is cleared: any other may hold somebody's own recordings.
    """
    directory.mkdir(parents=True, exist_ok=True)
    ours = (directory / _RECORD).exists() or (directory / _PARTIAL).exists()
    if not ours and any(directory.iterdir()):
        raise ConfigError(f"{directory} is neither empty nor a corpus of ours: choose an empty or new folder.")
    (directory / _PARTIAL).touch()
    (directory / _RECORD).unlink(missing_ok=True)
    for split in SPLITS:
        if (directory / split).exists():
            shutil.rmtree(directory / split)


def _summary(directory: Path, config: CorpusConfig, seconds: dict[str, float], reused: bool) -> Corpus:
    speakers = {split: tuple(f"{config.accent}-{name}" for name in config.speakers_of(split)) for split in SPLITS}
    utterances = {split: config.utterances_of(split) for split in SPLITS}
    return Corpus(directory, config.accent, speakers, utterances, dict(seconds), reused)
