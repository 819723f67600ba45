"""Names of the splits of a source of recordings, without reading them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from zo_common.errors import DataError
from zo_common.models.hub import hub_or_cache
from zo_common.speech.layouts import split_places

if TYPE_CHECKING:
    from zo_common.config.run import RunConfig

DEVELOPMENT = ("dev", "validation", "valid")  # splits for evaluation during a run, in this order


def splits_of(source: str, *, ask_hub: bool = False) -> tuple[str, ...]:
    """Return names of the splits of a source of `read_manifest`; empty if there is none, or it has no splits.

    Args:
        source: an empty one has none.
        ask_hub: ask the Hugging Face hub, or its cache here, about a source that is not a folder.
    """
    if not source:
        return ()  # else the current directory
    folder = Path(source).expanduser()
    try:
        if folder.is_dir():
            return tuple(sorted(name for name in split_places(folder) if name))
    except (OSError, ValueError, RuntimeError, DataError):
        return ()  # reading the source reports its fault
    return _hub_splits(source) if ask_hub and not folder.exists() else ()


def guarded_split(config: RunConfig) -> str:
    """Return the split of a device's own `data` that the server's guard evaluates; empty if there is none.

    `guard-split`, else the first split of the folder called dev, validation or valid that is neither the train nor the
    reported split, else `eval-split`. A hub is not asked for its splits.
    """
    return config.guard_split or _development(config, splits_of(config.data)) or config.eval_split


def server_split(config: RunConfig) -> str:
    """Return the split of the server's own `data` for guard and measurements; empty if there is none.

    As `guarded_split`, but `eval-split` counts only where the server evaluates, and a hub is asked if it does.
    """
    if config.guard_split:
        return config.guard_split
    evaluated = config.eval_split if config.evaluate_on == "server" else ""
    return _development(config, splits_of(config.data, ask_hub=bool(evaluated))) or evaluated


def _development(config: RunConfig, there: Collection[str]) -> str:
    used = (config.train_split, config.eval_split)
    return next((name for name in DEVELOPMENT if name in there and name not in used), "")


def _hub_splits(source: str) -> tuple[str, ...]:
    try:
        import datasets
    except ImportError:
        return ()
    try:
        with hub_or_cache(source):
            return tuple(datasets.get_dataset_split_names(source))
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, datasets.exceptions.DatasetsError):
        return ()
