"""Devices, batches and cohorts composed from the table of slopes, and the scalars that they would send.

Draws that a device takes from a seed come from a generator here; noise and samples under a guarantee come from the
operating system, as on a device, so no two runs of those parts give the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.device.private_steps import PrivateSteps
from zo_common.privacy.discrete_gaussian import poisson_subset
from zo_common.privacy.mechanism import Mechanism

Array = NDArray[np.float64]
Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Devices:
    """For each of T trials m devices with n utterances each.

    Attributes:
        slots: (T, m, n) columns of the table.
        place: (T,) the slot of the first device that is asked about.
    """

    slots: Indices
    place: Indices


def devices(
    generator: np.random.Generator, column: int, columns: int, shape: tuple[int, int, int], *, member: bool
) -> Devices:
    """Return devices of utterances other than `column`, but for one of the first device's where `member`.

    Args:
        columns: of the table, from which utterances are drawn with replacement.
        shape: (T, m, n).
    """
    drawn = generator.integers(columns - 1, size=shape)
    slots = drawn + (drawn >= column)
    place = generator.integers(shape[2], size=shape[0])
    if member:
        slots[np.arange(shape[0]), 0, place] = column
    return Devices(slots, place)


def batches(generator: np.random.Generator, shape: tuple[int, int, int], size: int) -> Indices:
    """Return `size` different slots out of n for each trial and device, (T, m, size), as in an ordinary step."""
    return np.argpartition(generator.random(shape), min(size, shape[2]) - 1, axis=2)[:, :, :size]


def plain_scalars(rows: Array, columns: Indices) -> Array:
    """Return what devices send of batches of columns (…, B): float32 means (…, d), as `estimator.measure`.

    Args:
        rows: (d, columns) of one round.
    """
    sent = np.moveaxis(rows[:, columns].mean(axis=-1), 0, -1).astype(np.float32)
    return sent.astype(np.float64)


def private_scalars(
    mechanism: Mechanism, rows: Array, columns: Indices, batch: int, sample: list[int] | None = None
) -> tuple[Array, list[int]]:
    """Return what a device with these columns sends under the example level, (q,), and its sample's slots.

    Args:
        rows: (q, columns) of one round.
        sample: slots; None draws them.
    """
    steps = PrivateSteps(mechanism, batch, len(columns))
    if sample is None:
        sample = draw(batch, len(columns))
    return steps.release(rows[:, columns[sample]]).astype(np.float64), sample


def draw(batch: int, size: int) -> list[int]:
    """Return the slots in a sample of a device with `size` utterances, as `PrivateSteps.loss` draws them."""
    return poisson_subset(size, min(batch, size), size)


def clipped(mechanism: Mechanism, rows: Array) -> Array:
    """Return the columns of (d, columns) clipped, as numbers."""
    return np.ldexp(mechanism.grid.clip(rows).astype(np.float64), mechanism.grid.exponent)


def noise_deviation(mechanism: Mechanism) -> float:
    """Return the standard deviation of the noise in each number of a sum."""
    return mechanism.grid.value(mechanism.sigma_units)


def usual_norm(rows: Array) -> float:
    """Return median L2 norm of columns, over rounds: (R, d, columns)."""
    return float(np.median(np.linalg.norm(rows, axis=1)))
