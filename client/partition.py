"""Which utterances belong to which client of a simulation."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

from client.manifest import Utterance
from zo_common.errors import ConfigError

SHARDS_PER_PARTITION = 2


def partition(
    utterances: Sequence[Utterance], partition_id: int, num_partitions: int, by: str, *, seed: int = 0
) -> list[int]:
    """Ascending indices of the utterances of one client; the same arguments always give the same ones.

    `by` is a column ("speaker": client i has the i-th value in sorted order), "round-robin", "iid",
    "dirichlet:<column>:<alpha>"
    or "shard:<column>" (2 shards of the sorted rows for each client; the fewer than 2·`num_partitions` rows that
    equal shards leave over belong to nobody).
    Raises ConfigError for unknown columns, numbers that do not fit, and a client without utterances.
    """
    if by == "round-robin" and 0 <= partition_id < min(num_partitions, len(utterances)):
        return list(range(partition_id, len(utterances), num_partitions))
    if not 0 <= partition_id < num_partitions:
        raise ConfigError(
            f"partition-id is {partition_id} with num-partitions {num_partitions}: "
            "give num-partitions a positive number, and partition-id one from 0 to below it."
        )
    if num_partitions > len(utterances):
        raise ConfigError(
            f"{num_partitions} partitions of {len(utterances)} utterances leave some empty: lower num-partitions."
        )
    scheme, _, argument = by.partition(":")
    if by != "iid" and scheme not in ("dirichlet", "shard"):
        return _natural(utterances, partition_id, num_partitions, by)
    values = [""] * len(utterances)
    alpha = 1.0
    if scheme != "iid":
        column, alpha = _arguments(scheme, argument)
        values = _values(utterances, column)
    partitioners, rows = _flwr_datasets(scheme, values)
    partitioner: Any
    if scheme == "iid":
        # The partitioner cuts consecutive blocks, which in a table sorted by speaker are speakers.
        rows, partitioner = rows.shuffle(seed=seed), partitioners.IidPartitioner(num_partitions)
    elif scheme == "dirichlet":
        partitioner = partitioners.DirichletPartitioner(
            num_partitions, "value", alpha, min_partition_size=1, shuffle=False, seed=seed
        )
    else:
        partitioner = partitioners.ShardPartitioner(
            num_partitions, "value", num_shards_per_partition=SHARDS_PER_PARTITION, shuffle=False, seed=seed
        )
    partitioner.dataset = rows
    return _load(partitioner, partition_id, f"{len(values)} utterances by '{by}' among {num_partitions} clients")


def _values(utterances: Sequence[Utterance], column: str) -> list[str]:
    known = sorted({name for utterance in utterances for name in utterance.columns})
    if column not in known:
        raise ConfigError(
            f"Column '{column}' not found, the data has {', '.join(known) or 'no other columns'}: partition by one of "
            "these, or by iid, dirichlet:<column>:<alpha> or shard:<column>."
        )
    values = [utterance.columns.get(column, "") for utterance in utterances]
    if "" in values:
        raise ConfigError(
            f"{values.count('')} of {len(values)} utterances have no {column} (the first is "
            f"{utterances[values.index('')].where}): fill the column in, or partition by another."
        )
    return values


def _natural(utterances: Sequence[Utterance], partition_id: int, num_partitions: int, column: str) -> list[int]:
    values = _values(utterances, column)
    distinct = sorted(set(values))
    if len(distinct) != num_partitions:
        raise ConfigError(
            f"num-partitions is {num_partitions}, but the data has {len(distinct)} values of {column} "
            f"({', '.join(distinct[:8])}{', ...' if len(distinct) > 8 else ''}): set num-partitions={len(distinct)}."
        )
    return [index for index, value in enumerate(values) if value == distinct[partition_id]]


def _arguments(scheme: str, argument: str) -> tuple[str, float]:
    """Column and, for "dirichlet", alpha."""
    if scheme == "shard":
        column, alpha, expected = argument, 1.0, "shard:<column>, such as shard:speaker"
    else:
        column, _, text = argument.rpartition(":")
        expected = "dirichlet:<column>:<alpha> with alpha above 0, such as dirichlet:accent:0.5"
        try:
            alpha = float(text)
        except ValueError:
            alpha = math.nan
    if not column or not 0 < alpha < math.inf:
        raise ConfigError(f"Cannot partition by '{scheme}:{argument}': expected {expected}.")
    return column, alpha


def _flwr_datasets(scheme: str, values: Sequence[str]) -> tuple[Any, Any]:
    """The module of partitioners, and rows with the columns `index` and `value`."""
    try:
        from datasets import Dataset
        from flwr_datasets import partitioner
    except ImportError:
        raise ConfigError(
            f"Partitioning by {scheme} needs flwr-datasets, which is not installed: "
            "run pip install 'federated-zo-asr[demo]'."
        ) from None
    return partitioner, Dataset.from_dict({"index": list(range(len(values))), "value": list(values)})


def _load(partitioner: Any, partition_id: int, task: str) -> list[int]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one for each further draw of the Dirichlet fractions
            chosen = sorted(int(index) for index in partitioner.load_partition(partition_id)["index"])
    except (ValueError, ZeroDivisionError):
        chosen = []
    if not chosen:
        raise ConfigError(
            f"Cannot share {task} without an empty one: lower num-partitions, or raise dirichlet's alpha."
        )
    return chosen
