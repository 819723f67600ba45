"""Choice of the kernel that moves the weights: by their device and number, or else plain torch."""

from __future__ import annotations

import warnings
from typing import Literal

from zo_common.errors import first_line
from zo_common.lattice.kernels.base import Kernel, LatticeTensor
from zo_common.lattice.kernels.few import MOST_WEIGHTS, NumpyKernel
from zo_common.lattice.kernels.plain import TorchKernel

KernelName = Literal["auto", "numpy", "numba", "torch"]


def choose_kernel(tensors: tuple[LatticeTensor, ...], threads: int, name: KernelName = "auto") -> Kernel:
    """Return the fastest kernel for these tensors; all kernels give the same bits.

    Args:
        tensors: the trained tensors, contiguous float32, on any devices.
        threads: number of CPU threads.
        name: of the kernel; "auto": the one of the tensors' device, on the CPU of their size.
    """
    devices = {tensor.weight.device for tensor in tensors}
    kinds = {device.type for device in devices}
    if name == "torch":
        return TorchKernel(tensors)
    if kinds <= {"cpu"}:
        few = sum(tensor.weight.numel() for tensor in tensors) <= MOST_WEIGHTS
        if name == "numpy" or (name == "auto" and few):
            return NumpyKernel(tensors)
        return _compiled(tensors, threads)
    # several GPUs would need a launch each: rare, so torch is used
    if kinds == {"cuda"} and len(devices) == 1:
        return _on_cuda(tensors)
    return TorchKernel(tensors)


def _compiled(tensors: tuple[LatticeTensor, ...], threads: int) -> Kernel:
    try:
        # imported here: Numba takes 50 MB and a second
        from zo_common.lattice.kernels.cpu import NumbaKernel
    except (
        ImportError,
        OSError,
        RuntimeError,
    ) as error:  # no Numba, no library of it, or no folder for what it compiles
        many = sum(tensor.weight.numel() for tensor in tensors)
        slower = f"plain torch moves the {many:,} trained weights, slower"
        warnings.warn(f"Numba cannot be used ({first_line(error)}): {slower}; {_remedy(error)}", stacklevel=3)
        return TorchKernel(tensors)
    return NumbaKernel(tensors, threads)


def _remedy(error: Exception) -> str:
    if isinstance(error, ImportError):
        return "pip install 'federated-zo-asr[compiled]' installs it"
    return (
        "set NUMBA_CACHE_DIR to a folder that can be written, or install it again: pip install --force-reinstall numba"
    )


def _on_cuda(tensors: tuple[LatticeTensor, ...]) -> Kernel:
    try:
        # imported here: machines without a GPU need neither Triton nor the time of its import
        from zo_common.lattice.kernels.cuda import TritonKernel

        kernel = TritonKernel(tensors)
        kernel.peaks()  # compiles and launches: Triton needs a C compiler and a supported GPU
    except Exception as error:  # any error of Triton, its compiler or the driver
        warnings.warn(
            f"Triton cannot be used on this GPU ({first_line(error)}): plain torch moves the weights, slower",
            stacklevel=3,
        )
        return TorchKernel(tensors)
    return kernel
