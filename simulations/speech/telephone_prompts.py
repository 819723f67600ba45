"""Human speech in French and Russian: the telephone prompts of Asterisk, from Debian's packages, as an audio folder.

One professional speaker per language at 8 kHz: June Wallack (CC BY-SA 3.0), and ivrvoice.ru's Russian voice (CC BY
3.0). `asterisk-core-sounds-XX` has the transcripts, `asterisk-core-sounds-XX-wav` the recordings.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import soundfile

from zo_common.errors import ConfigError
from zo_common.speech.audio import MAX_SECONDS

LANGUAGES = ("fr", "ru")
SPLITS = ("train", "dev", "test")
COLUMNS = ("file_name", "transcription", "speaker", "language")
# of the prompts that are used; the rest is for development
TRAIN_SHARE, TEST_SHARE = 0.72, 0.19

_RECORD = "prompts.json"
_FORMAT = 1
_LEAST_WORDS = 3
_NOT_AS_SPOKEN = (
    re.compile(r"[\[\]()<>]"),  # a stage direction, not words
    re.compile(r"\d"),  # read in words
    re.compile(r"\b[A-Z] [A-Z]\b"),  # spelled
)


@dataclass(frozen=True)
class Prompt:
    """One recording with its transcript; `seconds` it lasts."""

    name: str
    text: str
    audio: Path
    seconds: float


@dataclass(frozen=True)
class PromptFolder:
    """An audio folder on disk: utterances and seconds of its "train", "dev" and "test" splits."""

    directory: Path
    utterances: dict[str, int]
    seconds: dict[str, float]


def write_prompts(
    directory: Path, language: str, *, unpacked: Path | None = None, cache: Path = Path("data/debian")
) -> PromptFolder:
    """Write the prompts of a language as an `audiofolder`, or reuse the one that was completely written before.

    Files are `<split>/<prompt>.wav` as they were recorded and `<split>/metadata.csv`. Which prompt is in which split
    depends on its text alone: one text is never in two of them.

    Args:
        language: "fr" or "ru".
        unpacked: where the two packages lie unpacked (with `usr/share` in it); None downloads them.
        cache: folder for downloaded, unpacked packages.

    Raises:
        ConfigError: unknown language, packages that cannot be downloaded or lack prompts, or a directory in use.
    """
    if language not in LANGUAGES:
        raise ConfigError(f"language is {language!r}, expected one of {', '.join(LANGUAGES)}")
    if directory.exists():
        return _read_record(directory, language)
    splits = split_prompts(read_prompts(unpacked or download(cache, language), language))
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}-", dir=directory.parent) as scratch:
        made = Path(scratch) / directory.name
        for split, prompts in splits.items():
            _write_split(made / split, prompts, language)
        counts = {split: len(prompts) for split, prompts in splits.items()}
        seconds = {split: round(sum(p.seconds for p in prompts), 3) for split, prompts in splits.items()}
        record = {"format": _FORMAT, "language": language, "utterances": counts, "seconds": seconds}
        (made / _RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        try:
            os.replace(made, directory)
        except OSError:
            return _read_record(directory, language)  # another process was faster
    return PromptFolder(directory, counts, seconds)


def read_prompts(unpacked: Path, language: str) -> tuple[Prompt, ...]:
    """Return prompts with verbatim text, at least three words and at most 30 s, ordered by name.

    Raises:
        ConfigError: transcripts or recordings are missing.
    """
    package = f"asterisk-core-sounds-{language}"
    transcripts = unpacked / "usr/share/doc" / package / f"core-sounds-{language}.txt.gz"
    sounds = sorted((unpacked / "usr/share/asterisk/sounds").glob(f"{language}_*"))
    try:
        lines = gzip.decompress(transcripts.read_bytes()).decode("utf-8").splitlines()
    except (OSError, EOFError, UnicodeDecodeError):
        raise ConfigError(f"'{transcripts}' cannot be read: unpack the Debian package {package} again") from None
    if not sounds:
        raise ConfigError(f"'{unpacked}' has no recordings of {language}: unpack the Debian package {package}-wav too")
    found = {}
    for name, text in filter(None, map(_transcript, lines)):
        audio = sounds[0] / f"{name}.wav"
        if audio.is_file() and (seconds := soundfile.info(audio).duration) <= MAX_SECONDS:
            found[name] = Prompt(name, text, audio, seconds)
    if not found:
        raise ConfigError(f"none of the prompts of '{transcripts}' has a recording: unpack both packages again")
    return tuple(found[name] for name in sorted(found))


def _transcript(line: str) -> tuple[str, str] | None:
    """Return name and text of a line; None for a comment, or if the text is not a verbatim transcript."""
    name, colon, text = line.partition(":")
    text = " ".join(text.split())
    usable = colon and not line.startswith(";") and len(text.split()) >= _LEAST_WORDS
    return (name.strip(), text) if usable and not any(p.search(text) for p in _NOT_AS_SPOKEN) else None


def split_prompts(prompts: Sequence[Prompt]) -> dict[str, list[Prompt]]:
    """Return the prompts of every split; prompts with equal text are in the same split."""
    order = sorted(prompts, key=lambda p: (hashlib.sha256(p.text.casefold().encode()).digest(), p.name))
    train = _whole_texts(order, round(TRAIN_SHARE * len(order)))
    test = _whole_texts(order, train + round(TEST_SHARE * len(order)))
    return {"train": order[:train], "dev": order[test:], "test": order[train:test]}


def _whole_texts(order: Sequence[Prompt], at: int) -> int:
    """Return the first index from `at` on where another text begins."""
    while 0 < at < len(order) and order[at].text.casefold() == order[at - 1].text.casefold():
        at += 1
    return at


def download(cache: Path, language: str) -> Path:
    """Download and unpack both Debian packages of a language; the folder with `usr/share` in it.

    Raises:
        ConfigError: there is no `apt-get`, or it cannot reach the packages.
    """
    target = cache / language
    if (target / "usr").is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{language}-", dir=target.parent) as scratch:
        names = [f"asterisk-core-sounds-{language}", f"asterisk-core-sounds-{language}-wav"]
        _command(["apt-get", "download", *names], Path(scratch))
        for package in sorted(Path(scratch).glob("*.deb")):
            _command(["dpkg-deb", "-x", package.name, "unpacked"], Path(scratch))
        try:
            os.replace(Path(scratch) / "unpacked", target)
        except OSError as error:
            if not (target / "usr").is_dir():
                raise ConfigError(f"'{target}' cannot be written ({error.strerror}): name another cache") from None
    return target


def _command(words: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, timeout=600)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(
            f"'{words[0]}' cannot be run ({error}): unpack Debian's packages elsewhere and name the folder"
        ) from None
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "nothing said").splitlines()[-1]
        raise ConfigError(
            f"'{' '.join(words[:2])}' failed ({last}): run `apt-get update`, or unpack the packages elsewhere and name "
            "the folder"
        )


def _write_split(folder: Path, prompts: Sequence[Prompt], language: str) -> None:
    folder.mkdir(parents=True)
    with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for prompt in sorted(prompts, key=lambda p: p.name):
            name = f"{prompt.name.replace('/', '-')}.wav"
            shutil.copyfile(prompt.audio, folder / name)
            writer.writerow((name, prompt.text, f"{language}-asterisk", language))


def _read_record(directory: Path, language: str) -> PromptFolder:
    try:
        record = json.loads((directory / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = {}
    if (record.get("format"), record.get("language")) != (_FORMAT, language):
        raise ConfigError(f"'{directory}' is in use by something else: name a new directory for the prompts")
    return PromptFolder(directory, record["utterances"], record["seconds"])
