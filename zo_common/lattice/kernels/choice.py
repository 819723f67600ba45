"""Which kernel moves the weights: the compiled one of their device, or plain torch where there is none."""

from __future__ import annotations

import warnings

from zo_common.lattice.kernels.base import Kernel, LatticeTensor
from zo_common.lattice.kernels.plain import TorchKernel


def choose_kernel(tensors: tuple[LatticeTensor, ...], threads: int, reference: bool = False) -> Kernel:
    """All of them give the same bits; they differ in speed alone.

    Args:
        tensors: the trained tensors, contiguous float32, on any devices.
        threads: how many threads share a pass on the CPU.
        reference: plain torch everywhere.
    """
    devices = {tensor.weight.device for tensor in tensors}
    kinds = {device.type for device in devices}
    if reference:
        return TorchKernel(tensors)
    if kinds <= {"cpu"}:
        # not at the top: where all weights are on a GPU, Numba need not be installed
        from zo_common.lattice.kernels.cpu import NumbaKernel

        return NumbaKernel(tensors, threads)
    # several devices would need a launch each: rare enough to leave to torch
    if kinds == {"cuda"} and len(devices) == 1:
        return _on_cuda(tensors)
    return TorchKernel(tensors)


def _on_cuda(tensors: tuple[LatticeTensor, ...]) -> Kernel:
    try:
        # not at the top: machines without a GPU need neither Triton nor the time that its import takes
        from zo_common.lattice.kernels.cuda import TritonKernel

        kernel = TritonKernel(tensors)
        kernel.peaks()  # compiles and launches: Triton needs a C compiler and a GPU that it knows
    except Exception as error:  # whatever Triton, its compiler or the driver raises
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        warnings.warn(
            f"Triton cannot be used on this GPU ({reason}): plain torch moves the weights, slower", stacklevel=3
        )
        return TorchKernel(tensors)
    return kernel
