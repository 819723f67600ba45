"""Partition of utterances among the clients of a simulation."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

from zo_common.errors import ConfigError
from zo_common.speech.utterance import LeftOut, Manifest, Utterance

SHARDS_PER_PARTITION = 2
_COUNT = "(devices in [simulation] of a scenario, num-supernodes of flwr run, num-partitions of node configs)"


def partition(
    utterances: Sequence[Utterance], partition_id: int, num_partitions: int, by: str, *, seed: int = 0
) -> list[int]:
    """Return ascending indices of the utterances of one client; see `Partitions`."""
    return Partitions(utterances, num_partitions, by, seed=seed).of(partition_id)


class Partitions:
    """Shares of all clients in a table, computed once; the same arguments always give the same shares.

    `by` is a column ("speaker": client i has the i-th value in sorted order), "round-robin", "iid",
    "dirichlet:<column>:<alpha>"
    or "shard:<column>" (2 shards of the sorted rows for each client; the fewer than 2·`num_partitions` rows that equal
    shards leave over are not used).

    Args:
        left_out: unusable rows: by a column, if there are as many clients as values including these, a client with only
            such rows has an empty share.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        num_partitions: int,
        by: str,
        *,
        seed: int = 0,
        left_out: Sequence[LeftOut] = (),
    ) -> None:
        self._utterances = utterances
        self._left_out = left_out
        self._count = num_partitions
        self._by = by
        self._seed = seed

    def of(self, partition_id: int) -> list[int]:
        """Return ascending indices of the utterances of one client.

        Raises ConfigError for unknown columns, numbers out of range, and a client without any rows.
        """
        if self._by == "round-robin" and 0 <= partition_id < min(self._count, len(self._utterances)):
            return list(range(partition_id, len(self._utterances), self._count))
        if not 0 <= partition_id < self._count:
            raise ConfigError(
                f"partition-id is {partition_id} with num-partitions {self._count}: "
                "give num-partitions a positive number, and partition-id one from 0 to below it."
            )
        if self._count > len(self._utterances) + len(self._left_out):
            raise ConfigError(
                f"{self._count} devices share {len(self._utterances)} utterances, which leaves some without any: "
                f"have fewer devices {_COUNT}."
            )
        return self._shares(partition_id)

    def left_out_of(self, partition_id: int) -> list[LeftOut]:
        """Return the unusable rows that are counted as one client's; each row is counted for one client.

        By a column, these are the rows with the client's value; all others, of unknown owner, are dealt out in turn.
        Raises ConfigError as `of`.
        """
        self.of(partition_id)
        names = [] if self._is_scheme else list(self._natural)
        of_nobody = [row for row in self._left_out if row.columns.get(self._by) not in names]
        own = [row for row in self._left_out if names and row.columns.get(self._by) == names[partition_id]]
        return own + of_nobody[partition_id :: self._count]

    @property
    def _is_scheme(self) -> bool:
        return self._by in ("iid", "round-robin") or self._by.partition(":")[0] in ("dirichlet", "shard")

    @cached_property
    def _natural(self) -> dict[str, list[int]]:
        return _natural(self._utterances, self._count, self._by, self._left_out)

    @cached_property
    def _shares(self) -> Callable[[int], list[int]]:
        if not self._is_scheme:
            return list(self._natural.values()).__getitem__
        scheme, _, argument = self._by.partition(":")
        task = f"{len(self._utterances)} utterances by '{self._by}' among {self._count} clients"
        return partial(_load, self._partitioner(scheme, argument), task)

    def _partitioner(self, scheme: str, argument: str) -> Any:
        count, seed = self._count, self._seed
        values = [""] * len(self._utterances)
        alpha = 1.0
        if scheme != "iid":
            column, alpha = _arguments(scheme, argument)
            values = _values(self._utterances, column)
        partitioners, rows = _flwr_datasets(scheme, values)
        partitioner: Any
        if scheme == "iid":
            # The partitioner cuts consecutive blocks, which in a table sorted by speaker are speakers.
            rows, partitioner = rows.shuffle(seed=seed), partitioners.IidPartitioner(count)
        elif scheme == "dirichlet":
            partitioner = partitioners.DirichletPartitioner(
                count, "value", alpha, min_partition_size=1, shuffle=False, seed=seed
            )
        else:
            partitioner = partitioners.ShardPartitioner(
                count, "value", num_shards_per_partition=SHARDS_PER_PARTITION, shuffle=False, seed=seed
            )
        partitioner.dataset = rows
        return partitioner


def natural_count(utterances: Sequence[Utterance], by: str) -> int | None:
    """Return the number of devices if each has one value of the column `by`; None if `by` is no column.

    Raises:
        ConfigError: the data has no such column, or rows without a value in it.
    """
    scheme = by.partition(":")[0]
    return None if scheme in ("iid", "round-robin", "dirichlet", "shard") else len(set(_values(utterances, by)))


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


def named_rows(manifest: Manifest, by: str) -> Manifest:
    """Return a manifest without rows that have no value in the column of the partition; these become problems.

    If no row has a value, or `by` is no column, it is unchanged: the partition reports the fault.
    """
    scheme, _, argument = by.partition(":")
    column = {"dirichlet": argument.rpartition(":")[0], "shard": argument}.get(scheme, by)
    named = tuple(u for u in manifest.utterances if u.columns.get(column))
    if not named or len(named) == len(manifest.utterances):
        return manifest
    fault = f"got no {column}, by which recordings are shared out: fill it in or delete the row."
    nameless = (LeftOut((f"{u.where}: {fault}",), u.columns) for u in manifest.utterances if not u.columns.get(column))
    return replace(manifest, utterances=named, left_out=(*manifest.left_out, *nameless))


def _natural(
    utterances: Sequence[Utterance], num_partitions: int, column: str, left_out: Sequence[LeftOut]
) -> dict[str, list[int]]:
    """Map each value of the column to the indices of its utterances, in the order of clients."""
    shares: dict[str, list[int]] = {}
    for index, value in enumerate(_values(utterances, column)):
        shares.setdefault(value, []).append(index)
    if len(shares) < num_partitions:  # the number of devices may include those with unusable rows only
        missing = (row.columns.get(column, "") for row in left_out)
        everybody = shares | {name: [] for name in missing if name and name not in shares}
        shares = everybody if len(everybody) == num_partitions else shares
    distinct = sorted(shares)
    if len(distinct) != num_partitions:
        raise ConfigError(
            f"{num_partitions} devices were asked for, but the data has {len(distinct)} values of {column} "
            f"({', '.join(distinct[:8])}{', ...' if len(distinct) > 8 else ''}), one a device: have {len(distinct)} "
            f"devices {_COUNT}, or partition by iid."
        )
    return {value: shares[value] for value in distinct}


def _arguments(scheme: str, argument: str) -> tuple[str, float]:
    """Return the column and, for "dirichlet", alpha."""
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
    """Return the module of partitioners, and rows with the columns `index` and `value`."""
    try:
        from datasets import Dataset
        from flwr_datasets import partitioner
    except ImportError:
        raise ConfigError(
            f"Partitioning by {scheme} needs flwr-datasets, which is not installed: "
            "run pip install 'federated-zo-asr[demo]'."
        ) from None
    return partitioner, Dataset.from_dict({"index": list(range(len(values))), "value": list(values)})


def _load(partitioner: Any, task: str, partition_id: int) -> list[int]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one for each further draw of the Dirichlet fractions
            chosen = sorted(int(index) for index in partitioner.load_partition(partition_id)["index"])
    except (ValueError, ZeroDivisionError):
        chosen = []
    if not chosen:
        raise ConfigError(
            f"Cannot share {task} without an empty one: have fewer devices {_COUNT}, or raise dirichlet's alpha."
        )
    return chosen
