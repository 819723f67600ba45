"""Prometheus metrics of the resident worker; no label names a recording, a device or a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from client.device.privacy_account import PrivacyAccount
from zo_common.address import NO_HOST_NAME, host_and_port, is_loopback
from zo_common.errors import ConfigError

logger = logging.getLogger(__name__)
_STATES = ("idle", "train", "evaluate", "sync")


class WorkerCollector(Collector):
    """Collector of a worker's metrics.

    Args:
        status: returns the worker's status, as `WorkerService.status`.
        account: the owner's privacy limit, if any, and its file.
    """

    def __init__(self, status: Callable[[], dict[str, Any]], account: tuple[PrivacyAccount, Path] | None) -> None:
        self._status, self._account = status, account
        self._spent: tuple[tuple[int, int], float] | None = None  # time and size of the file, ε

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics as they are now."""
        found = self._status()
        yield GaugeMetricFamily("zo_asr_worker_round", "The round whose weights are held.", found["round"])
        answers = CounterMetricFamily("zo_asr_worker_answers", "Answers to messages, by outcome.", labels=["outcome"])
        for outcome, count in sorted(found["counts"].items()):
            answers.add_metric([outcome], count)
        yield answers
        doing = found["job"]["kind"] if found["job"] else "idle"
        state = GaugeMetricFamily("zo_asr_worker_state", "1 for what the worker is doing.", labels=["state"])
        for name in _STATES:
            state.add_metric([name], float(name == doing))
        yield state
        unsaved = bool(found["unsaved"])
        yield GaugeMetricFamily("zo_asr_worker_state_unsaved", "1 while the state cannot be written to disk.", unsaved)
        if last := found["last"]:
            says = "Wall time of the last work."
            yield GaugeMetricFamily("zo_asr_worker_last_work_duration_seconds", says, last["seconds"])
        if self._account is not None:
            says, limit = "Epsilon of all answers together, by the device's own count.", self._account[0].max_epsilon
            yield GaugeMetricFamily("zo_asr_worker_privacy_epsilon_spent", says, self._epsilon())
            yield GaugeMetricFamily("zo_asr_worker_privacy_epsilon_limit", "The owner's max-epsilon.", limit)

    def describe(self) -> Iterable[Metric]:
        """Return nothing: names are checked at the first scrape."""
        return ()

    def _epsilon(self) -> float:
        """Return the ε spent, computed again only if the account's file has changed: it takes a while."""
        assert self._account is not None
        account, path = self._account
        try:
            found = path.stat()
            now = found.st_mtime_ns, found.st_size
        except FileNotFoundError:
            now = 0, 0
        if self._spent is None or self._spent[0] != now:
            self._spent = now, account.epsilon
        return self._spent[1]


def serve_metrics(
    address: str, status: Callable[[], dict[str, Any]], account: tuple[PrivacyAccount, Path] | None = None
) -> tuple[int, Callable[[], None]]:
    """Serve `/metrics` from a thread; return the port (of 0, the system's choice) and a function that ends it.

    Raises:
        ConfigError: the address is malformed or in use.
    """
    host, port = host_and_port(address)
    registry = CollectorRegistry()
    registry.register(WorkerCollector(status, account))
    ProcessCollector(registry=registry)
    try:
        server, thread = start_http_server(port, host, registry)
    except (OSError, UnicodeError) as error:  # the latter where no name is written so
        reason = error.strerror if isinstance(error, OSError) else NO_HOST_NAME
        raise ConfigError(f"metrics cannot be served on {address} ({reason}): name another address") from None
    if not is_loopback(host):
        logger.warning(f"metrics on {address} can be read by whoever reaches it")

    def end() -> None:
        server.shutdown()
        thread.join(5.0)

    return int(server.server_port), end
