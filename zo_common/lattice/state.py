"""The lattice state of a model: the one place where weights move.

perturb, restore, update and undo are all `shift`: an exact in-place add of whole grid units along ±1 directions.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from zo_common.directions.seeds import tensor_id
from zo_common.errors import ChecksumMismatch, EpsilonTooSmall, LatticeOverflow, UnsupportedModel
from zo_common.lattice import grid as lattice
from zo_common.lattice.kernels.base import LatticeTensor
from zo_common.lattice.kernels.choice import KernelName, choose_kernel
from zo_common.lattice.kernels.plain import TorchKernel, peak_after
from zo_common.lattice.trained import adjustments, select
from zo_common.lattice.update import Update

_PERSON = b"zo-asr/state/v1"
# a quantum beyond this cannot end inside the legal range from inside it
_MAX_QUANTUM = 2 * lattice.MAX_UNITS
_PIECE = 1 << 20  # elements that `grid_units` and `move` hold at a time


def _version(parameter: torch.Tensor) -> int:
    return 0 if parameter.is_inference() else int(parameter._version)


class LatticeState:
    """Snaps a model's trained tensors to their lattice and moves them exactly.

    1. `select` chooses tensors by `pattern`; grid and scale exponents are taken from their present (base) values
       and what the pattern adds to them, or from `exponents` (name → (grid, scale)) where a ledger fixes them.
    2. Every tensor is snapped in place.
    3. `shift` and `apply` move all of them in one pass; `checksum` identifies the result.

    Raises:
        PatternError, TensorIdCollision, UnsupportedModel: see `zo_common.lattice.trained.select`.
        LatticeOverflow: a weight does not fit the grid that `exponents` gives its tensor.
    """

    def __init__(
        self,
        model: nn.Module,
        pattern: str,
        scale: lattice.Scale = "unit",
        *,
        exponents: Mapping[str, tuple[int, int]] | None = None,
        threads: int | None = None,
        kernel: KernelName = "auto",
    ) -> None:
        self.model = model
        self.pattern = pattern
        self.scale: lattice.Scale = scale
        self.passes = 0
        self.zero_quanta = 0
        self.quanta = 0
        chosen = select(model, pattern)
        adjusted = adjustments(model, pattern)
        self.tensors = tuple(
            self._adopt(name, parameter, (exponents or {}).get(name), adjusted.get(name, (0, 0)))
            for name, parameter in chosen.items()
        )
        # looked up once: finding a thousand parameters by name takes longer than a pass over them on a GPU
        self._slots = tuple(self._slot(t.name) for t in self.tensors)
        self._kernel = choose_kernel(self.tensors, threads or torch.get_num_threads(), kernel)
        self._addresses = [t.weight.data_ptr() for t in self.tensors]
        self._versions = [_version(parameter) for parameter in self._parameters()]

    def _adopt(
        self, name: str, parameter: nn.Parameter, exponents: tuple[int, int] | None, adjusted: tuple[int, int]
    ) -> LatticeTensor:
        if parameter.dtype != torch.float32:
            raise UnsupportedModel(
                f"trained tensor {name!r} has dtype {parameter.dtype}, the lattice needs float32: "
                "load with dtype=float32"
            )
        if not parameter.data.is_contiguous():
            parameter.data = parameter.data.contiguous()
        largest = lattice.magnitude(parameter.data)
        if not math.isfinite(largest):
            raise UnsupportedModel(f"trained tensor {name!r} holds NaN or infinite weights: the checkpoint is damaged")
        grid, scale = exponents or (
            lattice.grid_exponent(parameter.data, self.scale) + adjusted[1],
            lattice.scale_exponent(parameter.data, self.scale) + adjusted[0],
        )
        if round(math.ldexp(largest, -grid)) > lattice.MAX_UNITS:
            raise LatticeOverflow(
                f"tensor {name!r} holds a weight of {largest:g}, which does not fit the given grid 2**{grid}: "
                "load the base model that the exponents were taken from"
            )
        lattice.snap_in_place(parameter.data, grid)
        return LatticeTensor(name, parameter.data, tensor_id(name), grid, scale)

    @property
    def num_elements(self) -> int:
        """Number of trained weights."""
        return sum(t.weight.numel() for t in self.tensors)

    @property
    def exponents(self) -> dict[str, tuple[int, int]]:
        """Name → (grid exponent, scale exponent)."""
        return {t.name: (t.grid_exponent, t.scale_exponent) for t in self.tensors}

    def units(self, coefficients: Sequence[float]) -> NDArray[np.int64]:
        """Return quanta of float32 coefficients in every tensor; shape (tensors, coefficients).

        Raises:
            LatticeOverflow: a coefficient is larger than any legal change.
        """
        return self._quanta(coefficients, "coefficient", "lower the learning rate")

    def _quanta(self, coefficients: Sequence[float], what: str, remedy: str) -> NDArray[np.int64]:
        with np.errstate(over="ignore"):  # what float32 cannot hold is refused below
            c = np.asarray(coefficients, np.float32).astype(np.float64)
        shift = np.array([2.0 ** (t.scale_exponent - t.grid_exponent) for t in self.tensors])
        quanta = np.rint(shift[:, None] * c[None, :])
        if not np.all(np.abs(quanta) <= _MAX_QUANTUM):
            t, j = np.argwhere(~(np.abs(quanta) <= _MAX_QUANTUM))[0]
            raise LatticeOverflow(
                f"{what} {coefficients[j]:g} is beyond the lattice of tensor {self.tensors[t].name!r}: {remedy}"
            )
        return quanta.astype(np.int64)

    def epsilon_units(self, epsilon: float) -> NDArray[np.int64]:
        """Return quanta of the perturbation ε, shape (tensors, 1).

        Raises:
            EpsilonTooSmall: ε is below half a grid unit in some tensor; names the tensor and the least legal ε.
            LatticeOverflow: ε is larger than any legal change.
        """
        units = self._quanta([epsilon], "epsilon", "lower it")
        for t, unit in zip(self.tensors, units[:, 0], strict=True):
            if unit == 0:
                least = max(lattice.least_epsilon(x.scale_exponent, x.grid_exponent) for x in self.tensors)
                raise EpsilonTooSmall(
                    f"epsilon {epsilon:g} rounds to zero grid units in tensor {t.name!r}: the least legal epsilon "
                    f"for the chosen tensors is {least:.9g}"
                )
        return units

    def shift(self, seeds: Sequence[int], units: NDArray[np.int64]) -> None:
        """Add, in one pass over the weights, Σ_j units[t, j]·z_t(seeds[j]) grid units to every tensor t.

        Raises:
            LatticeOverflow: a weight would leave ±2**24 units; nothing is changed then.
        """
        if len(seeds) == 0:
            return
        self.passes += 1
        self._expect_untouched()
        done = 0
        while done < len(seeds):
            size = len(seeds) - done
            while size and not self._kernel.shift(list(seeds[done : done + size]), units[:, done : done + size]):
                size //= 2
            if size == 0:
                self._shift_near_edge(list(seeds), units, done)
                return
            done += size

    def _shift_near_edge(self, seeds: list[int], units: NDArray[np.int64], done: int) -> None:
        """Handle updates that the bound does not cover: compute exactly where they lead, then write all or nothing."""
        left, columns = seeds[done:], units[:, done:]
        try:
            self._refuse_beyond(
                np.array([peak_after(t, left, row.tolist()) for t, row in zip(self.tensors, columns, strict=True)])
            )
        except LatticeOverflow:
            # last in, first out: any other order could pass through sums that were never proven to be legal
            self._kernel.add(seeds[:done][::-1], -units[:, :done][:, ::-1])
            raise
        finally:
            self._kernel.forget_bound()
        TorchKernel(self.tensors).add(left, columns)

    def _refuse_beyond(self, peaks: NDArray[np.int64]) -> None:
        if int(peaks.max()) > lattice.MAX_UNITS:
            worst = self.tensors[int(peaks.argmax())]
            raise LatticeOverflow(
                f"tensor {worst.name!r} would leave its lattice (a weight would reach {int(peaks.max())} units, legal "
                f"are {lattice.MAX_UNITS}): lower the learning rate or epsilon"
            )

    def _expect_untouched(self) -> None:
        """Raise if weights moved otherwise than through the lattice: that would go unnoticed until the checksum."""
        for t, address, parameter, version in zip(
            self.tensors, self._addresses, self._parameters(), self._versions, strict=True
        ):
            if parameter.data_ptr() != address or _version(parameter) != version:
                raise UnsupportedModel(
                    f"tensor {t.name!r} was moved, replaced or written to after the lattice was built: build it again"
                )

    def _slot(self, name: str) -> tuple[dict[str, nn.Parameter | None], str]:
        """Return a parameter's place: its module's dictionary and its name in it."""
        path, _, leaf = name.rpartition(".")
        return self.model.get_submodule(path)._parameters, leaf

    def _parameters(self) -> list[torch.Tensor]:
        found = [slot[leaf] for slot, leaf in self._slots]
        return [parameter for parameter in found if parameter is not None]

    def _expect_attached(self) -> None:
        """Raise if a module was replaced, which takes its parameters with it; checked before a state is reported."""
        for t, (slot, leaf) in zip(self.tensors, self._slots, strict=True):
            if self.model.get_parameter(t.name) is not slot[leaf]:
                raise UnsupportedModel(
                    f"the module of tensor {t.name!r} was replaced after the lattice was built: build it again"
                )

    def apply(self, updates: Sequence[Update], sign: int = 1) -> None:
        """Apply all updates in one fused pass; `sign=-1` undoes them to the bit."""
        if sign > 0:
            self.count_quanta(updates)
        self.shift([u.seed for u in updates], sign * self.units([u.coefficient for u in updates]))

    def count_quanta(self, updates: Sequence[Update]) -> None:
        """Count how many (tensor, direction) quanta are zero although the coefficient is not."""
        moving = [u.coefficient for u in updates if u.coefficient != 0]
        self.quanta += len(self.tensors) * len(moving)
        self.zero_quanta += int((self.units(moving) == 0).sum())

    def pieces(self) -> Iterator[tuple[LatticeTensor, torch.Tensor]]:
        """Yield live flat views of at most 2**20 weights, tensor after tensor in name order."""
        for t in self.tensors:
            for part in torch.split(t.weight.view(-1), _PIECE):
                yield t, part

    def grid_units(self) -> Iterator[NDArray[np.int32]]:
        """Yield all weights as whole grid units, in the order and sizes of `pieces`."""
        self._expect_untouched()
        for t, part in self.pieces():
            yield (part * 2.0**-t.grid_exponent).to(torch.int32).cpu().numpy()

    def move(self, differences: Callable[[], Iterable[NDArray[np.int32]]]) -> None:
        """Add whole grid units to every weight, given in the order and sizes of `pieces`.

        Args:
            differences: called twice, for the same values: once to check where they lead, once to write.

        Raises:
            LatticeOverflow: a weight would leave ±2**24 units; nothing is changed then, nor where `differences` raises.
        """
        for (t, _), n in zip(self.pieces(), self._moved(differences()), strict=True):
            reached = int(np.abs(n).max(initial=0))
            if reached > lattice.MAX_UNITS:
                raise LatticeOverflow(
                    f"tensor {t.name!r} would leave its lattice (a weight would reach {reached} units, legal are "
                    f"{lattice.MAX_UNITS}): these differences belong to another base model"
                )
        for (t, part), n in zip(self.pieces(), self._moved(differences()), strict=True):
            part.copy_(torch.from_numpy(n.astype(np.float32)) * 2.0**t.grid_exponent)
        self._kernel.forget_bound()

    def add(self, differences: Iterable[torch.Tensor], sign: int = 1) -> None:
        """Add whole grid units that are known to end on the lattice, unchecked, in one pass over the weights.

        Args:
            differences: integers where the weights are, in the order and sizes of `pieces`.
        """
        self._expect_untouched()
        for (t, part), difference in zip(self.pieces(), differences, strict=True):
            part.add_(difference.to(torch.float32), alpha=sign * 2.0**t.grid_exponent)
        self._kernel.forget_bound()

    def forget_bound(self) -> None:
        """Measure the weights before the next pass: another state of the same tensors has moved them."""
        self._kernel.forget_bound()

    def _moved(self, differences: Iterable[NDArray[np.int32]]) -> Iterator[NDArray[np.int64]]:
        for n, difference in zip(self.grid_units(), differences, strict=True):
            yield n.astype(np.int64) + difference

    def checksum(self) -> int:
        """Return the state checksum (exact-ZO v1): 8 bytes as a u64 that identify the trained weights."""
        self._expect_attached()
        sums = self._kernel.checksum_sums()
        walk = b"".join(struct.pack("<IQ", t.tensor_id, s) for t, s in zip(self.tensors, sums, strict=True))
        return int.from_bytes(hashlib.blake2b(walk, digest_size=8, person=_PERSON).digest(), "little")

    def expect_checksum(self, expected: int) -> None:
        """Raise ChecksumMismatch unless the state has this checksum."""
        got = self.checksum()
        if got != expected:
            raise ChecksumMismatch(
                f"state checksum is {got:016x}, expected {expected:016x}: replay from the base model"
            )
