"""Preparation of a worker at its start: the last run's settings, and the table of recordings."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from client.device.warm import warm_engine
from client.worker.journal import SavedState
from zo_common.config.run import RunConfig
from zo_common.errors import ModelNotFound, ZOError
from zo_common.speech.manifest import read_manifest

logger = logging.getLogger(__name__)
_PROBLEMS_SHOWN = 10


def settings_at_start(saved: SavedState | None, own: dict[str, Any]) -> RunConfig:
    """Return the last run's settings, else the defaults; the next run's may require another engine.

    Args:
        own: settings of this device, which override a run's.

    Raises:
        ZOError: the model cannot be loaded.
    """
    if saved is not None:
        try:
            config = RunConfig.from_mapping(saved.settings | own)
            warm_engine(config)
            return config
        except ModelNotFound:
            raise
        except ZOError as error:
            logger.warning(f"the last run's settings cannot be used ({error})")
    return RunConfig.from_mapping(own)


def describe_recordings(config: RunConfig) -> str:
    """Return the number of recordings in the table; log its problems."""
    read = partial(read_manifest, config.data, split=config.train_split or None, text_column=config.text_column)
    found, kind = read(need_text=config.needs_text), "recordings"
    if not found.utterances and config.needs_text and (untold := read(need_text=False)).utterances:
        found, kind = untold, "recordings without transcripts"  # which may be all that the next run needs
    for problem in found.problems[:_PROBLEMS_SHOWN]:
        logger.warning(f"recordings: {problem}")
    return f"{len(found.utterances)} {kind}"
