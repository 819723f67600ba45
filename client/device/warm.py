"""Cache of a process for all its virtual devices: one model, the table of recordings, and recent data sets."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch

from client.device.engine import Engine
from zo_common.config.run import ENGINE_SETTINGS, RunConfig
from zo_common.errors import ConfigError, DataError
from zo_common.speech.manifest import Manifest, read_manifest
from zo_common.speech.partition import Partitions, named_rows
from zo_common.speech.recordings import Recordings, read_speech

MAX_FEATURE_BYTES = 256 << 20  # of data sets in memory, about 2000 utterances of 5 s; others wait in `feature-cache`
_engines: dict[tuple[object, ...], Engine] = {}
_datasets: OrderedDict[tuple[object, ...], tuple[int, Recordings]] = OrderedDict()  # with bytes of features


def engine_key(config: RunConfig) -> tuple[object, ...]:
    """Return the settings that an engine is built with."""
    return tuple(getattr(config, name) for name in ENGINE_SETTINGS)


def data_key(config: RunConfig, partition_id: int | None, num_partitions: int) -> tuple[object, ...]:
    """Return the settings that choose and read a device's recordings."""
    return (
        config.model,  # its processor makes the features and the tokens
        config.data,
        config.train_split,
        config.text_column,
        config.needs_text,
        config.language,
        config.fold_accents,
        config.skip_bad,
        config.partition_by,
        config.run_seed,
        partition_id,
        num_partitions,
    )


def warm_engine(config: RunConfig) -> Engine:
    """Return the process's engine for this model and choice of tensors; the first call loads it."""
    if not config.model:
        raise ConfigError("model is not set: give a hub id or a directory, such as model=openai/whisper-tiny.en")
    key = engine_key(config)
    if key not in _engines:
        _share_the_machine(config.torch_threads)
        _engines.clear()  # one model in memory
        _engines[key] = Engine(config)
    return _engines[key]


def keep_warm(config: RunConfig, engine: Engine, data: Recordings) -> None:
    """Replace the process's engine and recordings by ones that were made elsewhere."""
    forget_all()
    _engines[engine_key(config)] = engine
    _datasets[data_key(config, None, 1)] = 0, data


def forget_all() -> None:
    """Drop the engine and all recordings."""
    _engines.clear()
    forget_recordings()


def forget_recordings() -> None:
    """Drop all recordings; the next use reads the tables again."""
    _manifest.cache_clear()
    _partitions.cache_clear()
    _datasets.clear()


def _share_the_machine(threads: int) -> None:
    """Limit this process to the threads that a forward pass uses, as other processes run beside it."""
    if threads:
        torch.set_num_threads(threads)
    with suppress(RuntimeError):  # too late once torch has computed in parallel
        torch.set_num_interop_threads(1)


def warm_dataset(config: RunConfig, engine: Engine, partition_id: int | None, num_partitions: int) -> Recordings:
    """Return the data set of one device, from memory, else from `config.feature_cache`, else from its recordings.

    Memory holds the data sets used last, `MAX_FEATURE_BYTES` of features in total, for any number of devices.

    Args:
        partition_id: which part of `config.data` belongs to this virtual device; None takes all of it.
    """
    if not config.data:
        raise ConfigError("data is not set: give a folder with metadata.csv, a saved dataset directory or a hub id")
    key = data_key(config, partition_id, num_partitions)
    if key in _datasets:
        _datasets.move_to_end(key)
        return _datasets[key][1]
    cache = Path(config.feature_cache) if config.feature_cache else None
    reader = engine.speech.reader(**config.reading, cache_dir=cache)
    dataset = read_speech(_share(config, partition_id, num_partitions), reader, skip_bad=config.skip_bad)
    _datasets[key] = sum(example.features.nbytes for example in dataset.examples), dataset
    total = sum(size for size, _ in _datasets.values())
    while total > MAX_FEATURE_BYTES and len(_datasets) > 1:
        total -= _datasets.popitem(last=False)[1][0]
    return dataset


def _share(config: RunConfig, partition_id: int | None, num_partitions: int) -> Manifest:
    """Return the rows of one device, and its share of those left out.

    If bad rows stop the run, it is given those of the whole table, so that each device refuses.
    """
    table = config.data, config.train_split, config.text_column, config.needs_text
    manifest = _manifest(*table)
    if partition_id is None:
        return manifest
    manifest = named_rows(manifest, config.partition_by)
    if not manifest.utterances:  # the table's own problems say more than that nothing can be shared out
        raise DataError(manifest.problems)
    partitions = _partitions(*table, config.partition_by, config.run_seed, num_partitions)
    mine = tuple(manifest.utterances[index] for index in partitions.of(partition_id))
    left_out = tuple(partitions.left_out_of(partition_id)) if config.skip_bad else manifest.left_out
    return replace(manifest, utterances=mine, left_out=left_out)


@lru_cache(maxsize=2)  # the train and the held-out split
def _manifest(data: str, split: str, text_column: str, need_text: bool = True) -> Manifest:
    return read_manifest(data, split=split or None, text_column=text_column, need_text=need_text)


@lru_cache(maxsize=2)
def _partitions(data: str, split: str, text_column: str, need_text: bool, by: str, seed: int, count: int) -> Partitions:
    manifest = named_rows(_manifest(data, split, text_column, need_text), by)
    return Partitions(manifest.utterances, count, by, seed=seed, left_out=manifest.left_out)
