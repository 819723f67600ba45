"""A pass is in place: however large a tensor, the kernels need little memory besides it (measured by the system)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import zo_common

TENSOR_BYTES = 32 << 20
CLEAR_REFS = Path("/proc/self/clear_refs")

# in a process of its own: the peak of this one is that of the tests before
MEASURE = """
import sys
import numpy as np
import torch
from pathlib import Path
from zo_common.lattice.kernels import plain as kernel_torch
from zo_common.lattice.kernels.base import LatticeTensor
from zo_common.lattice.kernels.cpu import NumbaKernel
from zo_common.lattice.kernels.plain import TorchKernel

kernel_torch.CHUNK_BLOCKS = 64
SEEDS = [1, 2, 3]

class Cloning(NumbaKernel):
    def add(self, seeds, units):
        before = self.tensors[0].weight.clone()
        super().add(seeds, units)

def kernel_of(numel):
    tensors = (LatticeTensor("w", torch.ones(numel), 7, -20, 0),)
    return {"numba": lambda: NumbaKernel(tensors, 2), "torch": lambda: TorchKernel(tensors),
            "cloning": lambda: Cloning(tensors, 2)}[sys.argv[1]]()

def use(kernel):
    assert kernel.shift(SEEDS, np.array([[5, -3, 2]]))
    kernel.peaks()
    kernel.checksum_sums()

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))

use(kernel_of(40_000))  # compiled code, threads and the scratch of one chunk are there before anything is measured
kernel = kernel_of(int(sys.argv[2]) // 4)
Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what is resident now
before = status("VmRSS")
use(kernel)
print(status("VmHWM") - before)
"""


def _growth(kernel: str, tensor_bytes: int) -> int:
    """Bytes by which the peak of a process grows while a kernel shifts, measures and sums a tensor of that size."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, kernel, str(tensor_bytes)],
        capture_output=True,
        text=True,
        cwd=Path(zo_common.__file__).parent.parent,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


pytestmark = pytest.mark.skipif(not os.access(CLEAR_REFS, os.W_OK), reason="needs Linux's /proc/self/clear_refs")


@pytest.mark.parametrize("kernel", ["numba", "torch"])
def test_no_scratch_of_the_size_of_a_tensor(kernel: str) -> None:
    growth = _growth(kernel, TENSOR_BYTES)

    assert growth < TENSOR_BYTES / 8, f"the peak grew by {growth} bytes beside a tensor of {TENSOR_BYTES}"


def test_the_scratch_of_plain_torch_does_not_grow_with_the_tensor() -> None:
    small, large = (_growth("torch", size) for size in (TENSOR_BYTES // 16, TENSOR_BYTES))

    assert large - small < TENSOR_BYTES / 32, f"scratch grew from {small} to {large} bytes"


def test_the_measure_sees_a_copy() -> None:
    assert _growth("cloning", TENSOR_BYTES) > 0.9 * TENSOR_BYTES
