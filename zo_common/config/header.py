"""A ledger's header from a run's settings, the same on the server and on a device."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from zo_common.config.run import RunConfig
from zo_common.ledger.ledger import LedgerHeader, TensorEntry


def header_of(
    config: RunConfig,
    fingerprint: str,
    base_checksum: int,
    tensors: tuple[TensorEntry, ...],
    settings: Mapping[str, Any] | None = None,
) -> LedgerHeader:
    """Return the header of a new ledger.

    Args:
        settings: kept for the record, none by default.
    """
    return LedgerHeader(
        fingerprint=fingerprint,
        base_checksum=base_checksum,
        model=config.model,
        pattern=config.trained_tensors,
        scale=config.scale,
        epsilon=config.estimator_config.epsilon,
        estimator=config.estimator,
        run_seed=config.run_seed,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        tensors=tensors,
        settings=dict(settings or {}),
    )
