"""Prometheus metrics of runs, computed from their folders at each scrape.

No label names a recording or a device: labels are the run's name and words of the server's own vocabulary.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.watch.run_folder import RunFolder, RunNow

Folders = Callable[[], Sequence[RunFolder]]
Samples = Iterator[tuple[tuple[str, ...], float]]
_STANDINGS = ("ok", "backing-off", "excluded")


class RunCollector(Collector):
    """Collector of all runs' metrics.

    Args:
        folders: returns the runs' folders, which may become more.
        disk: a path on the disk that runs are written to.
    """

    def __init__(self, folders: Folders, disk: Path) -> None:
        self._folders, self._disk = folders, disk

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics of all runs as they are now."""
        runs = [folder.read() for folder in self._folders()]
        kinds: tuple[tuple[Callable[..., Any], Table], ...] = (
            (GaugeMetricFamily, GAUGES),
            (CounterMetricFamily, COUNTERS),
        )
        for kind, table in kinds:
            for name, (says, label, of) in table.items():
                family = kind(f"zo_asr_{name}", says, labels=("run", *label))
                for run in runs:
                    for values, number in of(run):
                        family.add_metric((run.name, *values), number)
                yield family
        free = shutil.disk_usage(self._disk).free
        yield GaugeMetricFamily("zo_asr_disk_free_bytes", "Free space on the disk that runs are written to.", free)

    def describe(self) -> Iterable[Metric]:
        """Return nothing: names are checked at the first scrape, not by reading all runs at the start."""
        return ()


def registry_of(folders: Folders, disk: Path) -> CollectorRegistry:
    """Return a registry with the metrics of some runs alone."""
    registry = CollectorRegistry()
    registry.register(RunCollector(folders, disk))
    return registry


def _one(number: float | None) -> Samples:
    if number is not None:
        yield (), float(number)


def _last(run: RunNow, key: str) -> Samples:
    yield from _one(run.rounds[-1].get(key) if run.rounds else None)


def _devices_asked(run: RunNow) -> Samples:
    for key in ("asked", "answered") if run.rounds else ():
        yield (key,), float(run.rounds[-1].get(key, 0))


def _held_out(run: RunNow) -> Samples:
    yield from _one(next((row["loss"] for row in reversed(run.curve) if row.get("loss") is not None), None))


def _error_ratio(run: RunNow) -> Samples:
    decoded = [row for row in run.curve if "wer" in row]
    for name in ("wer", "cer") if decoded else ():
        yield (name,), float(decoded[-1][name])


def _standings(run: RunNow) -> Samples:
    found = Counter(row.get("standing") for row in run.devices)
    for name in _STANDINGS:
        yield (name,), float(found[name])


def _lag(run: RunNow) -> Samples:
    here = [row.get("last_seen_round", 0) for row in run.devices if row.get("standing") == "ok"]
    yield from _one(run.last_round - min(here) if here else None)


def _rounds(run: RunNow) -> Samples:
    yield from _one(len(run.rounds))


def _empty_rounds(run: RunNow) -> Samples:
    yield from _one(sum(not row.get("answered") and not row.get("closing") for row in run.rounds))


def _replies(run: RunNow) -> Samples:
    yield from _one(sum(row.get("answered", 0) for row in run.rounds))


def _refused(run: RunNow) -> Samples:
    total: Counter[str] = Counter()
    for row in run.rounds:
        total.update(row.get("refused") or {})
    yield from (((reason,), float(count)) for reason, count in sorted(total.items()))


def _payload(run: RunNow) -> Samples:
    for way in ("up", "down"):
        yield (way,), float(sum((row.get(way) or {}).get("payload", 0) for row in run.rounds))


def _seconds(run: RunNow) -> Samples:
    yield from _one(sum(row.get("seconds", 0.0) for row in run.rounds))


Table = dict[str, tuple[str, tuple[str, ...], Callable[[RunNow], Samples]]]

GAUGES: Table = {
    "run_active": ("1 while a server is running the run.", (), lambda run: _one(run.status == "running")),
    "run_finished": (
        "1 once the run has ended, and its result is no worse than its start.",
        (),
        lambda run: _one(run.status == "finished" and not run.verdict),
    ),
    "run_start_timestamp_seconds": ("Unix time of the server's last start.", (), lambda run: _one(run.started or None)),
    "run_rounds_target": ("Rounds that the settings ask for.", (), lambda run: _one(run.target_rounds or None)),
    "run_last_round": ("The last round in the log.", (), lambda run: _one(run.last_round)),
    "last_round_timestamp_seconds": (
        "Unix time of the ledger's last change.", (), lambda run: _one(run.changed or None)
    ),
    "last_round_duration_seconds": ("Wall time of the last round.", (), lambda run: _last(run, "seconds")),
    "last_round_devices": ("Devices of the last round, and those whose answers count.", ("state",), _devices_asked),
    "train_loss": ("Training loss of the last round, nats a token or character.", (), lambda run: _last(run, "loss")),
    "held_out_loss": ("Loss at the last evaluation of the held-out split, nats a token or character.", (), _held_out),
    "held_out_error_ratio": ("Error rate at the last evaluation that decoded, as a share.", ("metric",), _error_ratio),
    "devices": ("Devices that the run knows, by standing.", ("standing",), _standings),
    "devices_lag_rounds": ("Rounds since the quietest device in good standing answered.", (), _lag),
    "ledger_bytes": ("Size of the ledger.", (), lambda run: _one(run.ledger_bytes)),
    "privacy_epsilon_spent": ("The largest epsilon that a device has spent.", (), lambda run: _one(run.epsilon_spent)),
    "privacy_epsilon_limit": ("The run's target-epsilon.", (), lambda run: _one(run.epsilon_limit)),
}  # fmt: skip
"""Name without its prefix → help, labels besides `run`, and the samples of a run."""

COUNTERS: Table = {
    "rounds": ("Rounds in the log.", (), _rounds),
    "rounds_empty": ("Rounds without enough valid replies.", (), _empty_rounds),
    "replies": ("Replies that count.", (), _replies),
    "replies_refused": ("Replies that were refused or did not come, by reason.", ("reason",), _refused),
    "payload_bytes": ("Payload bytes of all devices.", ("direction",), _payload),
    "round_seconds": ("Wall time of all rounds.", (), _seconds),
}
"""As `GAUGES`; exposed with the suffix `_total`."""
