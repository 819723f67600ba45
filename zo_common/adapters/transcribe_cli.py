"""`zo-asr transcribe AUDIO… --model M --ledger L`: transcripts by a base model with a ledger applied."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zo_common.cli import Threads, run_typer
from zo_common.errors import ConfigError

if TYPE_CHECKING:
    from zo_common.bar import Bar
    from zo_common.speech.speech_model import SpeechModel, Wave

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
_GROUP_SECONDS = 600.0  # of audio that is read before it is transcribed: the first lines appear early

Read = tuple[Path, "Wave"]


@app.command()
def transcribe(
    audio: Annotated[list[Path], typer.Argument(help="Recordings, or folders of them.", show_default=False)],
    model: Annotated[
        str,
        typer.Option(help="Hub id or directory of the base; default: the one the ledger names.", show_default=False),
    ] = "",
    ledger: Annotated[
        str,
        typer.Option(help="A run's folder, a ledger, or an adapter's hub id; default: the base.", show_default=False),
    ] = "",
    language: Annotated[str, typer.Option(help="Default: the ledger's, or en.", show_default=False)] = "",
    batch_size: Annotated[int, typer.Option(min=1, help="Recordings decoded together.")] = 16,
    max_seconds: Annotated[float, typer.Option(help="Maximum seconds of a recording.")] = 4 * 3600.0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …")] = "auto",
    torch_threads: Threads = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Print transcripts of recordings of any length, a line each."""
    if not (model or ledger):
        raise ConfigError("neither --model nor --ledger is given, expected a model: name one, or a ledger that does")
    if not 0 < max_seconds < float("inf"):
        raise ConfigError(f"max-seconds is {max_seconds}, expected a positive number of seconds")
    from zo_common.bar import Bar, working
    from zo_common.speech.conversions import counted
    from zo_common.speech.long_audio import find_recordings

    paths, problems = find_recordings(audio)
    if not any(path.exists() for path in paths):  # told before a model is loaded
        raise ConfigError(" ".join(problems) or f"there is no recording '{paths[0]}', expected an audio file: name one")
    with working("loading the model"):
        speech, spoken = _load(model, ledger, language, device, torch_threads)
    work = _Work(speech, spoken, batch_size, max_seconds, as_json)
    with Bar("transcribing", len(paths)) as bar, counted() as changes:
        for problem in problems:
            work.fail(bar, problem)
        work.run(bar, paths)
    if changes.note:
        print(changes.note, file=sys.stderr)
    if work.failures:
        raise ConfigError(f"{work.failures} of {len(paths) + len(problems)} could not be used, see above")


def _load(model: str, ledger: str, language: str, device: str, threads: int) -> tuple[SpeechModel, str]:
    """Return the model with the ledger applied, and the spoken language."""
    import torch

    from zo_common.adapters.adapted import load_adapted
    from zo_common.adapters.source import find_ledger
    from zo_common.ledger.file import read_ledger_header
    from zo_common.models.quiet import quiet_transformers
    from zo_common.speech.model_kinds import speech_model

    quiet_transformers()
    if threads:
        torch.set_num_threads(threads)
    header = read_ledger_header(find_ledger(ledger)) if ledger else None
    spoken = language or (str(header.settings.get("language", "")) if header else "") or "en"
    base = model or (header.model if header else "")
    adapted = load_adapted(base, ledger or None, device=device, language=language)
    return speech_model(adapted.loaded), spoken


class _Work:
    """Transcription of recordings in groups; a bad recording does not stop the others."""

    def __init__(self, speech: SpeechModel, language: str, batch_size: int, max_seconds: float, as_json: bool) -> None:
        self._speech, self._language, self._batch_size = speech, language, batch_size
        self._max_seconds, self._json = max_seconds, as_json
        self.failures = 0

    def fail(self, bar: Bar, problem: str) -> None:
        """Print an error of one sentence on stderr."""
        self.failures += 1
        with bar.aside():
            print(f"error: {problem}", file=sys.stderr)

    def run(self, bar: Bar, paths: Sequence[Path]) -> None:
        """Print a line for each recording, in order; the bar counts recordings."""
        from zo_common.speech.transcripts import transcribe_waves

        done = 0
        for group, left in self._groups(bar, paths):
            seconds = sum(len(wave) for _, wave in group) / self._speech.rate
            texts = transcribe_waves(
                self._speech,
                [wave for _, wave in group],
                language=self._language,
                batch_size=self._batch_size,
                on_progress=partial(_advance, bar, done, len(group) / max(seconds, 1e-9)),
            )
            with bar.aside():
                for (path, wave), text in zip(group, texts, strict=True):
                    self._print(path, len(wave) / self._speech.rate, text)
            done = len(paths) - left

    def _groups(self, bar: Bar, paths: Sequence[Path]) -> Iterator[tuple[list[Read], int]]:
        """Yield groups of usable recordings, and the number not read yet."""
        from zo_common.speech.audio import AudioProblem
        from zo_common.speech.long_audio import read_wave, refuse_short

        group: list[Read] = []
        samples = 0
        for number, path in enumerate(paths, 1):
            try:
                wave = read_wave(path, rate=self._speech.rate, max_seconds=self._max_seconds)
                refuse_short(wave, self._speech.least, self._speech.rate, f"'{path.name}'")
            except AudioProblem as problem:
                self.fail(bar, str(problem))
                continue
            group.append((path, wave))
            samples += len(wave)
            if len(group) >= self._batch_size or samples > _GROUP_SECONDS * self._speech.rate:
                yield group, len(paths) - number
                group, samples = [], 0
        if group:
            yield group, 0

    def _print(self, path: Path, seconds: float, text: str) -> None:
        if self._json:
            found = {"file": str(path), "seconds": round(seconds, 3), "language": self._language, "text": text}
            print(json.dumps(found, ensure_ascii=False))
        else:
            print(f"{path}: {text}")


def _advance(bar: Bar, before: int, recordings_a_second: float, seconds: float) -> None:
    bar.at(before + seconds * recordings_a_second)


main = run_typer(app)

if __name__ == "__main__":
    main()
