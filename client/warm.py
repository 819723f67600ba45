"""Engines and data sets kept warm per process: virtual devices that share a process share one model."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch

from client.dataset import SpeechDataset, load_dataset
from client.engine import Engine
from client.manifest import read_manifest
from client.partition import partition
from zo_common.config import RunConfig
from zo_common.errors import ConfigError

_MAX_DATASETS = 64
_engines: dict[tuple[object, ...], Engine] = {}
_datasets: OrderedDict[tuple[object, ...], SpeechDataset] = OrderedDict()


def warm_engine(config: RunConfig) -> Engine:
    """The process's engine for this model and choice of tensors; loaded at the first call."""
    if not config.model:
        raise ConfigError("model is not set: give a hub id or a directory, such as model=openai/whisper-tiny.en")
    key = (
        config.model,
        config.trained_tensors,
        config.scale,
        config.epsilon,
        config.tail_tokens,
        config.precision,
        config.language,
    )
    if key not in _engines:
        if config.torch_threads:
            torch.set_num_threads(config.torch_threads)
        _engines.clear()  # one model in memory
        _engines[key] = Engine(config)
    return _engines[key]


def warm_dataset(config: RunConfig, engine: Engine, partition_id: int | None, num_partitions: int) -> SpeechDataset:
    """The data set of one device, features computed once.

    Args:
        partition_id: which part of `config.data` belongs to this virtual device; None takes all of it.
    """
    if not config.data:
        raise ConfigError("data is not set: give a folder with metadata.csv, a saved dataset directory or a hub id")
    key = (
        config.data,
        config.train_split,
        config.text_column,
        config.language,
        config.skip_bad,
        config.partition_by,
        config.run_seed,
        partition_id,
        num_partitions,
    )
    if key in _datasets:
        _datasets.move_to_end(key)
        return _datasets[key]
    manifest = read_manifest(config.data, split=config.train_split or None, text_column=config.text_column)
    wanted: set[str] | None = None
    if partition_id is not None:
        mine = partition(manifest.utterances, partition_id, num_partitions, config.partition_by, seed=config.run_seed)
        wanted = {manifest.utterances[i].where for i in mine}
    dataset = load_dataset(
        manifest,
        engine.processor,
        language=config.language,
        skip_bad=config.skip_bad,
        keep=lambda utterance: wanted is None or utterance.where in wanted,
        cache_dir=Path(config.feature_cache) if config.feature_cache else None,
    )
    _datasets[key] = dataset
    if len(_datasets) > _MAX_DATASETS:
        _datasets.popitem(last=False)
    return dataset
