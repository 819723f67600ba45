"""Output of `zo-asr adapt`: transcripts and word error rates on stdout, a progress bar on stderr."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from client.adapt.adapter import Adaptation
from zo_common.bar import Bar
from zo_common.speech.metrics import Scores, headline_metric, normalizer_name

_LABELS = {"wer": "WER", "raw_wer": "raw WER", "cer": "CER", "raw_cer": "raw CER"}


class View:
    """Results printed as they arrive; a context manager.

    Args:
        total: steps of the whole work, for the bar.
        as_json: one JSON object a line in place of text.
    """

    def __init__(self, total: int, *, as_json: bool = False, bar: Console | None = None) -> None:
        self._json = as_json
        self._bar = Bar("", max(total, 1), bar)

    def __enter__(self) -> View:
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.__exit__(*error)

    @property
    def drawn(self) -> bool:
        """Whether there is a bar."""
        return self._bar.drawn

    def at(self, done: int, text: str) -> None:
        """Move the bar; it appears after two seconds, on a terminal only."""
        self._bar.at(done, what=text)

    def failed(self, text: str) -> None:
        """Print an error of one sentence on stderr."""
        with self._bar.aside():
            print(f"error: {text}", file=sys.stderr)

    def note(self, text: str) -> None:
        """Print on stderr what was changed of the recordings; nothing for an empty text."""
        if text:
            with self._bar.aside():
                print(f"note: {text}", file=sys.stderr)

    def adapted(self, path: Path, result: Adaptation, record: Path | None, reference: str | None) -> None:
        """Print an utterance's transcripts, steps and seconds."""
        with self._bar.aside():
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
        with self._bar.aside():
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
        rates = [f"{_LABELS[name]} {first:.1%} → {last:.1%}" for (name, first), (_, last) in pairs]
        print(f"{', '.join(rates)} over {before.utterances} utterances{missing} ({normalizer_name(language)})")


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
