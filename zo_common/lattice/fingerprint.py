"""The fingerprint of a base model, which identifies the weights that a ledger belongs to."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable

import torch
from torch import nn

from zo_common.lattice import grid as lattice
from zo_common.lattice.trained import unique_parameters

_CHUNK = 1 << 22


def fingerprint(model: nn.Module) -> str:
    """Return the SHA-256 (64 hex digits) over all parameters in name order, each snapped to its own grid.

    For every parameter: name length u32, name (UTF-8), rank u32, dimensions u64, float32 little-endian snapped bytes.
    All parameters count, trained or not, so the fingerprint does not depend on the choice of trained tensors. It must
    be computed on the base model, since training changes weights. Snapping is idempotent, so it is the same before and
    after the lattice is built.
    """
    return fingerprint_of((name, parameter.detach()) for name, parameter in unique_parameters(model).items())


def fingerprint_of(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Return the fingerprint of float32 tensors in name order, tied ones once, which need not be in memory together."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        encoded = name.encode()
        digest.update(struct.pack("<I", len(encoded)) + encoded)
        digest.update(struct.pack(f"<I{tensor.dim()}Q", tensor.dim(), *tensor.shape))
        _update(digest, tensor)
    return digest.hexdigest()


def _update(digest: hashlib._Hash, weight: torch.Tensor) -> None:
    exponent = lattice.grid_exponent(weight)
    flat = weight.reshape(-1)
    for start in range(0, flat.numel(), _CHUNK):
        snapped = lattice.snap(flat[start : start + _CHUNK], exponent).cpu()
        digest.update(snapped.numpy().astype("<f4", copy=False).tobytes())
