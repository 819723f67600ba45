"""Output of `zo-asr-adapt`: transcripts and word error rates on stdout, a progress bar on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from client.adapt.adapter import Adaptation
from zo_common.speech.metrics import Scores, headline_metric, normalizer_name

_LABELS = {"wer": "WER", "raw_wer": "raw WER", "cer": "CER", "raw_cer": "raw CER"}
_PATIENCE = 2.0  # seconds without a bar


class View:
    """Results printed as they arrive; a context manager.

    Args:
        total: steps of the whole work, for the bar.
        as_json: one JSON object a line in place of text.
    """

    def __init__(self, total: int, *, as_json: bool = False, bar: Console | None = None) -> None:
        self._json = as_json
        self._console = bar or Console(stderr=True)
        # results go to a stdout of their own, which may be a file: rich must not draw them into the bar's terminal
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:.0f} %"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._bar.add_task("", total=max(total, 1))
        self._started = time.monotonic()
        self._drawn = False

    def __enter__(self) -> View:
        return self

    def __exit__(self, *_: object) -> None:
        if self._drawn:
            self._bar.stop()

    @property
    def drawn(self) -> bool:
        """Whether there is a bar."""
        return self._drawn

    def at(self, done: int, word: str) -> None:
        """Move the bar; it appears after two seconds, on a terminal only."""
        self._bar.update(self._task, completed=done, description=word)
        if not self._drawn and self._console.is_terminal and time.monotonic() - self._started > _PATIENCE:
            self._drawn = True
            self._bar.start()

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Hide the bar while something is printed."""
        if self._drawn:
            self._bar.stop()
        yield
        sys.stdout.flush()
        if self._drawn:
            self._bar.start()

    def failed(self, word: str) -> None:
        """Print an error of one sentence on stderr."""
        with self._aside():
            print(f"error: {word}", file=sys.stderr)

    def note(self, word: str) -> None:
        """Print on stderr what was changed of the recordings; nothing for an empty text."""
        if word:
            with self._aside():
                print(f"note: {word}", file=sys.stderr)

    def adapted(self, path: Path, result: Adaptation, record: Path | None, reference: str | None) -> None:
        """Print an utterance's transcripts, steps and seconds."""
        with self._aside():
            if self._json:
                print(json.dumps(_fields(path, result, record, reference), ensure_ascii=False))
                return
            print(path)
            if reference is not None:
                print(f"  spoken  {reference}")
            print(f"  before  {result.before}")
            print(f"  after   {result.after}")
            print(f"  {_account(result)}" + (f", record {record}" if record else ""))

    def replayed(self, path: Path, text: str) -> None:
        """Print an utterance's transcript under a record."""
        with self._aside():
            if self._json:
                print(json.dumps({"file": str(path), "after": text}, ensure_ascii=False))
            else:
                print(f"{path}\n  after   {text}")

    def rates(self, before: Scores, after: Scores, without: int, language: str) -> None:
        """Print error rates of the utterances with a reference, the language's headline first; `without` have none."""
        if self._json:
            fields = {
                f"{name}_{when}": rate
                for when, found in (("before", before), ("after", after))
                for name, rate in _rates(found, language)
            }
            named = {"headline": headline_metric(language), "normalizer": normalizer_name(language)}
            print(json.dumps({**fields, "utterances": before.utterances, **named}))
            return
        missing = f", {without} without a reference" if without else ""
        pairs = zip(_rates(before, language), _rates(after, language), strict=True)
        told = [f"{_LABELS[name]} {first:.1%} → {last:.1%}" for (name, first), (_, last) in pairs]
        print(f"{', '.join(told)} over {before.utterances} utterances{missing} ({normalizer_name(language)})")


def _rates(scores: Scores, language: str) -> list[tuple[str, float]]:
    """Return error rates by name, the language's headline and then its raw one first."""
    order = ("cer", "raw_cer", "wer", "raw_wer") if headline_metric(language) == "cer" else _LABELS
    return [(name, getattr(scores, name)) for name in order]


def _fields(path: Path, result: Adaptation, record: Path | None, reference: str | None) -> dict[str, object]:
    return {
        "file": str(path),
        "before": result.before,
        "after": result.after,
        "reference": reference,
        "steps": result.record.steps,
        "objectives": result.objectives,
        "stopped_early": result.stopped_early,
        "kept": result.kept,
        "note": result.note,
        "record": str(record) if record else None,
        "seconds": round(result.seconds, 3),
    }


def _account(result: Adaptation) -> str:
    """Return steps, objective, seconds and the note, in one line."""
    if not result.record.steps:
        return result.note or "not adapted"
    parts = [f"{result.record.steps} steps"]
    if result.stopped_early:
        parts[0] += " (the objective stopped falling)"
    parts.append(f"objective {result.objectives[0]:.4f} → {result.objectives[-1]:.4f}")
    parts.append(f"{result.seconds:.1f} s")
    return ", ".join(parts + [result.note] * bool(result.note))
