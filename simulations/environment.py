"""Environment variables by which a simulation sets the libraries it runs on; its processes inherit them."""

from __future__ import annotations

import os


def quiet_environment() -> None:
    """Disable telemetry, update checks and warnings of other packages: a simulation makes no such network requests."""
    for name, value in {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_DEDUP_LOGS": "0",
        "RAY_worker_niceness": "0",  # devices compete with nothing but each other
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
    }.items():
        os.environ.setdefault(name, value)
