"""Forward-pass precision. Weights stay float32 on the lattice; autocast only changes how losses are computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from zo_common.errors import ConfigError, first_line

_HOST_FULL = "can't allocate memory"  # of torch's allocator for main memory
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def _cpu_has_bfloat16() -> bool:
    """Return whether the processor multiplies bfloat16 natively; emulation would be slower than float32."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            flags = next((line for line in info if line.startswith("flags")), "")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def resolve_precision(precision: str, device: torch.device) -> str:
    """ "auto" → "bfloat16" where the device multiplies it natively, else "float32"; anything else is kept."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if device.type == "cpu" and _cpu_has_bfloat16() else "float32"


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which matrix products run in `precision` ("float32" changes nothing)."""
    if precision == "float32":
        return nullcontext()
    # weights change between two forwards of one context, so casts must not be cached
    return torch.autocast(device.type, _DTYPES[precision], cache_enabled=False)


def memory_is_full(error: Exception) -> bool:
    """Return whether Python or torch raised an error because a memory is full."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and _HOST_FULL in str(error)
    )


@contextmanager
def fits_memory(what: str, device: torch.device, remedy: str = "a smaller model") -> Iterator[None]:
    """Turn torch's error of a full memory into one sentence.

    Raises:
        ConfigError: `what` does not fit on the device.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not memory_is_full(error):
            raise
        room = f" of {torch.cuda.get_device_properties(device).total_memory / 1e9:.3g} GB" if _is_cuda(device) else ""
        raise ConfigError(
            f"{what} does not fit into the memory{room} of {device}: set frozen-precision=bfloat16 or int8, take "
            f"{remedy}, or another device"
        ) from None


def _is_cuda(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_available()


def choose_device(name: str) -> torch.device:
    """Return the torch device of that name; "auto" is CUDA if available, else the CPU.

    Raises:
        ConfigError: torch does not know the name, or cannot use such a device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # a meta tensor has no values
    except (RuntimeError, AssertionError, ImportError) as error:  # torch built without CUDA asserts
        raise ConfigError(
            f"device {name!r} cannot be used ({first_line(error)}): use auto, cpu, cuda, cuda:1, mps or xpu"
        ) from None
    return device
