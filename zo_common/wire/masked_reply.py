"""A device's answer to a plan under secure aggregation: a reply without scalars or loss, and the masked vector.

The vector holds K·q projected gradients in grid units times the device's weight, steps first, and then a zero. There
the loss once was: it does not depend on the directions, so that two sums at one state, over sets that differ by one
device, would show that device's loss. Where the plan asks for the curvature, four numbers without a dimension follow,
once each: log₂ t cut off at ±60, gᵀFg over m·t of the signal and of the noise at ±1, and v/m less its bias at 3
(`estimator.curvature`; m is the mean square of the n = K·q scalars, and quotients by it are n/(n − 2) times too large
on average). Of a sum no median can be taken, and no device's numbers can be checked: their means are cut off at the
same limits, and what a liar does to a step is bounded by the rounds before (`server.rounds.step_size`). With
device-level privacy the grid is that of the clip norm, and every device counts once. `"ZX"`, version u8 = 1, length u32
and the reply, and the masked input.
"""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from zo_common.binary.packing import Reader
from zo_common.errors import CodecError, SecureAggregationError
from zo_common.estimator.curvature import MOST_OF_ONE, Curvature, RelativeCurvature
from zo_common.privacy.mechanism import Mechanism
from zo_common.secure_sum.quantiser import Quantiser
from zo_common.wire.plan import Reply, decode_reply, encode_reply

MESSAGE_VERSION = 1
_MAGIC = b"ZX"
GRID = Quantiser()
CURVATURE_NUMBERS = 4
_MOST_LOG = 60.0


def bare(reply: Reply) -> Reply:
    """Return a reply without anything that one device measured: no scalars, loss or count, no message if it is OK."""
    nothing = np.zeros((0, 0), np.float32)
    return replace(reply, num_examples=0, loss=0.0, projected_grads=nothing, curvature=None)


def vector_length(local_steps: int, num_queries: int, *, curvature: bool) -> int:
    """Return numbers in each device's vector."""
    return local_steps * num_queries + 1 + (CURVATURE_NUMBERS if curvature else 0)


def grid_of(privacy: Mechanism | None) -> Quantiser:
    """Return the grid of a plan's sums: with device-level privacy the one on which its noise is whole numbers."""
    if privacy is None or privacy.level != "device":
        return GRID
    return Quantiser(privacy.grid.exponent, privacy.grid.bound)


def vector_of(reply: Reply, weight: int, total: int, privacy: Mechanism | None = None) -> tuple[NDArray[np.int64], int]:
    """Return the vector to mask, int64 (`vector_length`,), before any noise, and how many scalars the grid cut off.

    With device-level privacy it is clipped to the clip norm here once more, in whole numbers: noise is for no longer
    vector, whoever measured it.

    Raises:
        SecureAggregationError: a number that is not finite, or weights whose sums could overflow, or that would let a
            device with device-level privacy count more than once.
    """
    if privacy is not None and privacy.level == "device":
        if weight != 1:
            raise SecureAggregationError(
                f"weight {weight} was given with privacy=device, expected 1: noise is for devices that count once; set "
                "weighting=uniform"
            )
        return np.append(privacy.grid.clip(reply.projected_grads.reshape(-1, 1))[:, 0], np.int64(0)), 0
    units, clipped = GRID.quantise(reply.projected_grads.ravel())
    curved, _ = GRID.quantise(_curvature_numbers(reply.curvature, reply.projected_grads))
    return np.concatenate([GRID.weighted(units, weight, total), [np.int64(0)], curved]), clipped


def _curvature_numbers(found: Curvature | None, grads: NDArray[np.float32]) -> NDArray[np.float64]:
    if found is None:
        return np.zeros(0)
    relative = found.relative(float(np.square(grads.astype(np.float64)).mean()))
    if relative is None:
        return np.array([-_MOST_LOG, 0.0, 0.0, 1.0])
    t = relative.per_direction
    along = np.clip([relative.along_signal / t, relative.along_noise / t], -1, 1)
    share = relative.noise_share * max(1, grads.size - 2) / grads.size
    return np.array([np.clip(np.log2(t), -_MOST_LOG, _MOST_LOG), *along, share])


def means_of(
    total: NDArray[np.int64], weight: int, shape: tuple[int, int], grid: Quantiser = GRID
) -> NDArray[np.float64]:
    """Return the weighted means of projected gradients, float64 (K, q), from the sum of the vectors."""
    return grid.mean(total[: shape[0] * shape[1]], weight).reshape(shape)


def mean_curvature_of(total: NDArray[np.int64], devices: int) -> RelativeCurvature:
    """Return the cohort's curvature from the last numbers of its sum: t's geometric mean, the others' means."""
    means = GRID.mean(total[-CURVATURE_NUMBERS:], devices)
    log_t, signal, noise, share = np.clip(means, [-_MOST_LOG, -1, -1, 0], [_MOST_LOG, 1, 1, MOST_OF_ONE]).tolist()
    t = 2.0**log_t
    return RelativeCurvature(t, signal * t, noise * t, share)


def encode_masked(reply: Reply, masked: bytes) -> bytes:
    """Packed: 7 bytes, the reply bared, and the masked input."""
    head = encode_reply(replace(bare(reply), message=""))
    return struct.pack("<2sBI", _MAGIC, MESSAGE_VERSION, len(head)) + head + masked


def is_masked(data: bytes) -> bool:
    """Return whether bytes claim to be such an answer; what is not is a plain reply, as of a device that is behind."""
    return data[:2] == _MAGIC


def decode_masked(data: bytes) -> tuple[Reply, bytes]:
    """Inverse of `encode_masked`; the masked input is still packed.

    Raises:
        CodecError: malformed, or with scalars in the clear.
    """
    reader = Reader(data, "masked reply")
    magic, version, size = reader.take("2sBI")
    if magic != _MAGIC or version != MESSAGE_VERSION:
        raise CodecError(f"masked reply starts with {magic!r} version {version}: update the older side")
    reply = decode_reply(reader.raw(size))
    if reply.projected_grads.size or reply.loss or reply.num_examples or reply.curvature is not None:
        raise CodecError("masked reply carries scalars in the clear: update the device")
    return reply, reader.raw(reader.remaining)
