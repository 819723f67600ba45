"""The work of `zo-asr adapt`: one recording after another; a bad one does not stop the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from client.adapt.adapter import Adaptation, Adapter
from client.adapt.file import SUFFIX, AdaptationFile, read_file, write_file
from client.adapt.record import AdaptationRecord
from client.adapt.view import View
from zo_common.errors import ConfigError, DataError, ZOError
from zo_common.speech.audio import AudioProblem
from zo_common.speech.long_audio import read_wave
from zo_common.speech.manifest import read_manifest
from zo_common.speech.metrics import Scores, score
from zo_common.speech.speech_model import Wave

_STEM_BYTES = 200  # a file name may have 255 in all


@dataclass(frozen=True)
class Reading:
    """Settings of reading recordings: see `read_wave`."""

    max_seconds: float = 3600.0

    def __post_init__(self) -> None:
        if not 0 < self.max_seconds < math.inf:
            raise ConfigError(f"max-seconds is {self.max_seconds}, expected a positive number of seconds")


@dataclass(frozen=True)
class References:
    """Reference texts of recordings by path, and by file name where it is unique."""

    places: dict[Path, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def of(self, path: Path) -> str | None:
        """Return the reference of a recording, if there is one."""
        return self.places.get(path.resolve(), self.names.get(path.name))


def read_references(path: Path, text_column: str = "transcription") -> References:
    """Read references from a table, or a folder with one, in any layout (docs/data.md).

    Raises:
        ConfigError: there is no table, or no usable row.
    """
    if not path.exists():
        raise ConfigError(f"reference is '{path}', expected a table or a folder with one: check the path")
    try:
        manifest = read_manifest(str(path), text_column=text_column)
    except DataError as error:
        raise ConfigError(error.problems[0]) from None
    rows = [(u.source, u.text) for u in manifest.utterances if isinstance(u.source, Path)]
    if not rows:
        raise ConfigError(f"'{path}' has no row with a recording and its text: {manifest.problems[0]}")
    seen = [source.name for source, _ in rows]
    return References(
        {source.resolve(): text for source, text in rows},
        {source.name: text for source, text in rows if seen.count(source.name) == 1},
    )


def prepare_records(folder: Path) -> None:
    """Create the folder of records.

    Raises:
        ConfigError: it holds records already, of another run.
    """
    if folder.is_dir() and any(folder.glob(f"*{SUFFIX}")):
        raise ConfigError(f"'{folder}' holds records of another run: name a new folder, or delete them")
    folder.mkdir(parents=True, exist_ok=True)


class Run:
    """A run over recordings, in groups of `batch`, with its counts.

    Args:
        records: folder for a record of each group, or None.
        references: for word error rates, or None.
    """

    def __init__(
        self, adapter: Adapter, reading: Reading, view: View, *, records: Path | None, references: References | None
    ) -> None:
        self._adapter, self._reading, self._view = adapter, reading, view
        self._records, self._references = records, references
        self._base: dict[Path, str] = {}
        self._spoken: list[tuple[str, str, str]] = []
        self._written = self._done = 0
        self.failures = self.successes = 0

    def listen(self, paths: Sequence[Path]) -> list[Path]:
        """Transcribe all recordings with the base model, as their `before`; return those that could be read.

        For continual adaptation, in which the weights have left the base before most recordings.
        """
        for path in paths:
            self._view.at(self._done, f"base model: {path.name}")
            wave = self._read(path)
            if wave is not None:
                self._base[path] = self._adapter.transcribe(wave)
            self._done += 1
        return [path for path in paths if path in self._base]

    def adapt(self, paths: Sequence[Path], batch: int = 1) -> None:
        """Adapt to all recordings; failures are reported and counted."""
        for start in range(0, len(paths), batch):
            group = [(p, w) for p in paths[start : start + batch] if (w := self._read(p)) is not None]
            if group:
                self._group([path for path, _ in group], [wave for _, wave in group])
            self._done += self._adapter.steps

    def rates(self) -> None:
        """Show the word error rates, if there are references."""
        if self._references is None:
            return
        spoken, before, after = ([row[i] for row in self._spoken] for i in range(3))
        no_rate = Scores()
        language = self._adapter.settings.language
        first, last = (score(spoken, texts, language=language) if spoken else no_rate for texts in (before, after))
        self._view.rates(first, last, self.successes - len(spoken), language)

    def replay(self, paths: Sequence[Path], record: Path, file: AdaptationFile) -> None:
        """Transcribe recordings under a stored adaptation.

        Raises:
            WrongBaseModel, ConfigError, ChecksumMismatch: see `Adapter.replay`.
        """
        find = records_beside(record)
        for path in paths:
            wave = self._read(path)
            if wave is not None:
                self._view.at(self.successes, path.name)
                self._view.replayed(path, self._adapter.replay(file, [wave], find)[0])
                self.successes += 1

    def _read(self, path: Path) -> Wave | None:
        try:
            wave = read_wave(path, rate=self._adapter.rate, max_seconds=self._reading.max_seconds)
        except AudioProblem as problem:
            self.fail(str(problem))
            return None
        try:
            self._adapter.check(wave)
        except AudioProblem as problem:
            self.fail(f"'{path.name}': {problem}")
            return None
        return wave

    def fail(self, *problems: str) -> None:
        """Report and count failures, one sentence each."""
        for problem in problems:
            self.failures += 1
            self._view.failed(problem)

    def _group(self, paths: Sequence[Path], waves: Sequence[Wave]) -> None:
        name = paths[0].name if len(paths) == 1 else f"{paths[0].name} and {len(paths) - 1} more"

        def on_step(step: int, loss: float) -> None:
            self._view.at(self._done + step + 1, f"{name}: objective {loss:.4f}")

        self._view.at(self._done, name)
        try:
            results = self._adapter.adapt_together(waves, on_step)
        except ZOError as error:
            self.fail(*(f"'{path.name}': {error}" for path in paths))
            return
        try:
            record = self._store(paths[0], results[0])
        except OSError as error:
            self.fail(f"the record of '{name}' cannot be written ({error.strerror}): make room in '{self._records}'")
            record = None
        for path, result in zip(paths, results, strict=True):
            self._show(path, replace(result, before=self._base.get(path, result.before)), record)

    def _store(self, path: Path, result: Adaptation) -> Path | None:
        if self._records is None:
            return None
        self._written += 1
        stem = path.stem.encode()[:_STEM_BYTES].decode(errors="ignore")
        target = self._records / f"{self._written:04d}-{stem}{SUFFIX}"
        write_file(target, self._adapter.file_of(result))
        return target

    def _show(self, path: Path, result: Adaptation, record: Path | None) -> None:
        reference = self._references.of(path) if self._references else None
        self.successes += 1
        if reference is not None:
            self._spoken.append((reference, result.before, result.after))
        self._view.adapted(path, result, record, reference)


def records_beside(path: Path) -> Callable[[int], AdaptationRecord | None]:
    """Return a finder of records by seed in the folder of a record; the folder is read at the first call."""

    @cache
    def beside() -> dict[int, AdaptationRecord]:
        return {file.record.seed: file.record for file in _files_in(path.parent)}

    return lambda seed: beside().get(seed)


def _files_in(folder: Path) -> Iterator[AdaptationFile]:
    """Yield all readable records of a folder."""
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            yield read_file(path)
        except (ZOError, OSError):
            continue  # if a replay needs it, that reports it as missing
