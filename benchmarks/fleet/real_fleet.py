"""A deployment of real processes for measurements: that of the integration tests, with a tiny model and recordings."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.harness.workload import bundled

HELPERS = Path(__file__).parent.parent.parent / "tests" / "helpers"


@contextmanager
def real_fleet() -> Iterator[Any]:
    """`fleet_processes.Fleet` of three devices over TLS: SuperLink, SuperExec, proxy, SuperNodes and workers.

    What Flower and the network do does not depend on the model's size: plans and replies are the same.
    """
    sys.path.append(str(HELPERS))
    from fleet_processes import Fleet  # type: ignore[import-not-found]
    from tiny import write_mini_corpus, write_tiny_whisper  # type: ignore[import-not-found]

    folder = Path(tempfile.mkdtemp(prefix="real-fleet-"))
    try:
        model = write_tiny_whisper(bundled(), folder / "model")
        corpus = write_mini_corpus(folder / "corpus")
        with Fleet(folder, model, corpus) as fleet:
            yield fleet
    finally:
        shutil.rmtree(folder, ignore_errors=True)
