"""Files of evaluations, read without the lines that lack what is compared, which would stop every resume.

A file that is not there has no lines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from server.run.log import read_rows
from zo_common.checked import Count, read_values

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class _Sent:
    up: Count
    down: Count


@dataclass(frozen=True)
class _Loss:
    server_round: Count
    payload: _Sent
    loss: float


@dataclass(frozen=True)
class _Rates(_Loss):
    wer: float
    cer: float
    headline: Literal["wer", "cer"]
    normalizer: str
    utterances: Count


@dataclass(frozen=True)
class _Counts:
    errors: Count
    units: Count


@dataclass(frozen=True)
class _Device(_Counts):
    device: Count
    utterances: Count


@dataclass(frozen=True)
class _Transcript(_Counts):
    where: str
    reference: str
    hypothesis: str
    columns: dict[str, str]


def read_curve(path: Path) -> Rows:
    """Read the evaluations of a run."""
    return _read(path, lambda row: _Rates if "wer" in row or "headline" in row else _Loss)


def read_transcripts(path: Path) -> Rows:
    """Read the server's transcripts of an evaluation."""
    return _read(path, lambda row: _Transcript)


def read_counts(path: Path) -> Rows:
    """Read the errors and units of an evaluation's utterances or devices."""
    return _read(path, lambda row: _Counts)


def read_devices(path: Path) -> Rows:
    """Read the counts of devices that evaluated their own speech."""
    return _read(path, lambda row: _Device)


def _read(path: Path, kind: Callable[[dict[str, Any]], type]) -> Rows:
    return [row for row in read_rows(path) if _has(row, kind(row))] if path.exists() else []


def _has(row: dict[str, Any], kind: type) -> bool:
    """Return whether a row has the fields of a type; others are not looked at."""
    try:
        read_values(kind, row)
    except ValueError:
        return False
    return True
