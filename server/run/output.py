"""Checks of a run's output folder before anything slow starts: writable, unused, enough disk space."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from server.run.lock import refuse_dangling
from zo_common.config.run import RunConfig
from zo_common.errors import ConfigError
from zo_common.ledger.file import LEDGER_NAME
from zo_common.models.export import exported_bytes

SPARE_BYTES = 16 << 20
"""Bytes for ledger, logs and tokenizer, which are far smaller than a model."""


def check_output(config: RunConfig) -> None:
    """Refuse, before the first round, an output folder in which a run could not save its ledger and its model.

    The folder is not made: a run that fails while it loads leaves none.

    Raises:
        ConfigError: the folder cannot be written, holds an earlier model, or its disk is too full; names the remedy.
    """
    output = Path(config.output)
    refuse_dangling(output)
    try:
        place = next(each for each in (output, *output.absolute().parents) if each.exists())
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"\0")
        free = shutil.disk_usage(place).free
    except OSError as error:
        raise ConfigError(f"output {output} cannot be written ({error.strerror}): name another") from None
    refuse_occupied(config)
    need = SPARE_BYTES + (exported_bytes(Path(config.model)) if config.server_model else 0)
    if free < need:
        raise ConfigError(
            f"output {output} has {free >> 20} MiB free, the run leaves up to {need >> 20} MiB with the adapted model: "
            "free some space, or name another output"
        )


def refuse_occupied(config: RunConfig) -> None:
    """Refuse an output folder in which a new run could not save its model.

    Raises:
        ConfigError: there is a model, and no ledger to continue.
    """
    output = Path(config.output)
    fresh = not (output / LEDGER_NAME).exists()
    if config.server_model and fresh and (output / "model").exists():
        raise ConfigError(f"{output / 'model'} exists already: name another output")
