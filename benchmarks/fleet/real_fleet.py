"""A deployment of real processes for measurements, with a tiny model and recordings."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.fleet.processes import Fleet
from benchmarks.harness.workload import bundled
from simulations.models.tiny import write_mini_corpus, write_tiny_whisper


@contextmanager
def real_fleet() -> Iterator[Fleet]:
    """Start a fleet of three devices over TLS: SuperLink, SuperExec, proxy, SuperNodes and workers.

    What Flower and the network do does not depend on the model's size: plans and replies are the same.
    """
    folder = Path(tempfile.mkdtemp(prefix="real-fleet-"))
    try:
        model = write_tiny_whisper(bundled(), folder / "model")
        corpus = write_mini_corpus(folder / "corpus")
        with Fleet(folder, model, corpus) as fleet:
            yield fleet
    finally:
        shutil.rmtree(folder, ignore_errors=True)
