"""Conversion of recordings of any layout to Hugging Face's `audiofolder`."""

from __future__ import annotations

import csv
import io
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import soundfile

from zo_common.errors import ConfigError, DataError
from zo_common.speech.audio import AudioProblem, as_audio_problem, decode, name_of
from zo_common.speech.manifest import Manifest

_SUFFIXES = {"WAVEX": ".wav", "OGG": ".ogg", "NIST": ".sph", "AIFF": ".aiff"}  # of formats with other names


def convert(
    splits: dict[str, Manifest],
    output: Path,
    *,
    skip_bad: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, int]:
    """Write splits as folders with `metadata.csv`; recordings keep their bytes, parts of long ones become WAV files.

    All recordings are checked as for training; a folder is written whole or not at all.

    Returns:
        Split → recordings written.

    Raises:
        DataError: there are unusable rows, without `skip_bad`, or a split has no usable row.
        ConfigError: `output` exists, or cannot be written.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"output '{output}' is there already, expected a new or an empty folder: name another")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as scratch:
            made = Path(scratch) / "made"
            counts, problems, done = {}, [], 0
            total = sum(len(manifest.utterances) for manifest in splits.values())
            for name, manifest in splits.items():
                bad = _write(made / name, manifest, partial(_onwards, on_progress, done, total))
                done += len(manifest.utterances)
                counts[name] = len(manifest.utterances) - len(bad)
                problems += [*manifest.problems, *bad]
                if not counts[name]:
                    problems.append(f"No recording of {name} can be used: correct the data, or name another split.")
            if problems and not (skip_bad and all(counts.values())):
                raise DataError(problems)
            if output.exists():
                output.rmdir()
            made.replace(output)
    except OSError as error:
        raise ConfigError(f"output '{output}' cannot be written ({error.strerror}): name another") from None
    return counts


def _onwards(on_progress: Callable[[int, int], None], before: int, total: int, at: int) -> None:
    on_progress(before + at, total)


def _write(folder: Path, manifest: Manifest, on_progress: Callable[[int], None]) -> list[str]:
    """Write one split; return the faults of recordings that are left out."""
    folder.mkdir(parents=True)
    columns = dict.fromkeys(name for u in manifest.utterances for name in u.columns)
    names = [name for name in columns if name not in ("file_name", "transcription")]
    problems = []
    with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["file_name", "transcription", *names])
        for number, utterance in enumerate(manifest.utterances, 1):
            try:
                audio = utterance.audio
                decode(audio)
                target = folder / f"{number:06d}{_suffix(audio)}"
                if isinstance(audio, Path):
                    shutil.copyfile(audio, target)
                else:
                    target.write_bytes(audio)
            except AudioProblem as problem:
                problems.append(f"{utterance.where}: {problem}")
            else:
                table.writerow([target.name, utterance.text, *(utterance.columns.get(name, "") for name in names)])
            on_progress(number)
    return problems


def _suffix(audio: Path | bytes) -> str:
    if isinstance(audio, Path):
        return audio.suffix.lower()
    with as_audio_problem(name_of(audio)), soundfile.SoundFile(io.BytesIO(audio)) as file:
        return _SUFFIXES.get(file.format, f".{file.format.lower()}")
