"""The fingerprint of a base model: which weights a ledger belongs to."""

from __future__ import annotations

import hashlib
import struct

import torch
from torch import nn

from zo_common.lattice import grid as lattice
from zo_common.lattice.trained import unique_parameters

_CHUNK = 1 << 22


def fingerprint(model: nn.Module) -> str:
    """SHA-256 (64 hex digits) over all parameters in name order, each snapped to its own grid.

    For every parameter: name length u32, name (UTF-8), rank u32, dimensions u64, float32 little-endian snapped bytes.
    All parameters count, trained or not, so one model has one fingerprint whatever is trained. It must be taken of the
    base model: training moves weights, and with them the fingerprint. Snapping is idempotent, so before or after the
    lattice was built is the same.
    """
    digest = hashlib.sha256()
    for name, parameter in unique_parameters(model).items():
        encoded = name.encode()
        digest.update(struct.pack("<I", len(encoded)) + encoded)
        digest.update(struct.pack(f"<I{parameter.dim()}Q", parameter.dim(), *parameter.shape))
        _update(digest, parameter.detach())
    return digest.hexdigest()


def _update(digest: hashlib._Hash, weight: torch.Tensor) -> None:
    exponent = lattice.grid_exponent(weight)
    flat = weight.reshape(-1)
    for start in range(0, flat.numel(), _CHUNK):
        snapped = lattice.snap(flat[start : start + _CHUNK], exponent).cpu()
        digest.update(snapped.numpy().astype("<f4", copy=False).tobytes())
