"""The interface of the lattice's kernels, and the bound that lets the fast path skip range checks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from zo_common.lattice.grid import MAX_UNITS


@dataclass(frozen=True)
class LatticeTensor:
    """One trained tensor: its live float32 storage and its fixed exponents (grid 2**k_T, scale 2**s_T)."""

    name: str
    weight: torch.Tensor
    tensor_id: int
    grid_exponent: int
    scale_exponent: int


class Kernel(ABC):
    """In-place passes over a fixed tuple of trained tensors.

    Adding ±c in float32 is exact as long as no partial sum leaves ±2**24 units. A bound on every tensor's largest |n|
    guarantees this without checking each element in each pass; weights are measured only when the bound is used up.
    """

    def __init__(self, tensors: tuple[LatticeTensor, ...]) -> None:
        self.tensors = tensors
        self._bound = np.full(len(tensors), MAX_UNITS, np.int64)

    def shift(self, seeds: list[int], units: NDArray[np.int64]) -> bool:
        """Move every tensor by Σ_j units[t, j]·z_j, units of shape (tensors, seeds), if that is provably exact.

        Returns False, with nothing changed, if a partial sum might leave ±2**24 units.
        """
        reach = np.abs(units).sum(axis=1)
        if np.any(self._bound + reach > MAX_UNITS):
            self._bound = self.peaks()
            if np.any(self._bound + reach > MAX_UNITS):
                return False
        self._bound = self._bound + reach
        self.add(seeds, units)
        return True

    def forget_bound(self) -> None:
        """Note that other code changed the weights, so that they are measured before the next pass."""
        self._bound = np.full(len(self.tensors), MAX_UNITS, np.int64)

    @abstractmethod
    def add(self, seeds: list[int], units: NDArray[np.int64]) -> None:
        """Add Σ_j units[t, j]·z_j grid units to every tensor, without any check."""

    @abstractmethod
    def peaks(self) -> NDArray[np.int64]:
        """Return the largest |n| of every tensor, in units; shape (tensors,)."""

    @abstractmethod
    def checksum_sums(self) -> list[int]:
        """S = Σ_i (n_i mod 2**32)·(2i+1) mod 2**64 of every tensor."""
