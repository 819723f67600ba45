"""Precision of the forward passes: what "auto" means, and that weights may move within one context."""

from __future__ import annotations

import builtins
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from zo_common.errors import ConfigError
from zo_common.lattice.state import LatticeState
from zo_common.lattice.update import Update
from zo_common.models.compute import autocast, choose_device, fits_memory, resolve_precision

Models = Callable[..., nn.Module]
CPU = torch.device("cpu")


def _cpuinfo(monkeypatch: pytest.MonkeyPatch, content: str | None) -> None:
    real = builtins.open

    def fake(path: Any, *arguments: Any, **options: Any) -> Any:
        if str(path) != "/proc/cpuinfo":
            return real(path, *arguments, **options)
        if content is None:
            raise FileNotFoundError(path)
        return io.StringIO(content)

    monkeypatch.setattr(builtins, "open", fake)


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_stated_precision_is_kept(precision: str, device: str) -> None:
    assert resolve_precision(precision, torch.device(device)) == precision


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16\n", "bfloat16"),
        ("processor\t: 0\nflags\t\t: fpu amx_bf16 amx_tile\n", "bfloat16"),
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f\n", "float32"),
        ("processor\t: 0\n", "float32"),
        (None, "float32"),
    ],
)
def test_auto_on_a_processor(monkeypatch: pytest.MonkeyPatch, content: str | None, expected: str) -> None:
    _cpuinfo(monkeypatch, content)

    assert resolve_precision("auto", CPU) == expected


@pytest.mark.parametrize(("supported", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_auto_on_cuda(monkeypatch: pytest.MonkeyPatch, supported: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: supported)

    assert resolve_precision("auto", torch.device("cuda")) == expected


def test_auto_elsewhere_is_float32() -> None:
    assert resolve_precision("auto", torch.device("mps")) == "float32"


@pytest.mark.parametrize(
    ("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)]
)
def test_matrix_products_run_in_the_chosen_precision(precision: str, dtype: torch.dtype) -> None:
    layer, inputs = nn.Linear(4, 3), torch.ones(2, 4)

    with autocast(precision, CPU):
        assert layer(inputs).dtype == dtype

    assert layer(inputs).dtype == torch.float32
    assert layer.weight.dtype == torch.float32


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_weights_moved_within_a_context_are_seen(small_model: Models, precision: str) -> None:
    model = small_model()
    state = LatticeState(model, "all", threads=1)
    inputs = torch.ones(2, 3)

    with torch.inference_mode(), autocast(precision, CPU):
        before = model(inputs)
        state.apply([Update(1, 0.125)])
        moved = model(inputs)
        state.apply([Update(1, 0.125)], sign=-1)
        after = model(inputs)

    assert not torch.equal(before, moved)
    assert torch.equal(before, after)


@pytest.mark.parametrize("device", ["cuda:99", "nonsense", "meta:x", "meta", "hpu"])
def test_a_device_that_is_not_there_is_one_sentence(device: str) -> None:
    with pytest.raises(ConfigError, match=f"device '{device}' cannot be used .*: use auto, cpu"):
        choose_device(device)


def test_the_device_is_cuda_or_the_cpu_unless_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_device("cpu") == torch.device("cpu")
    for available, kind in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert choose_device("auto").type == kind


class TestFullMemory:
    @pytest.mark.parametrize(
        "error",
        [
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
            RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
            MemoryError(),
        ],
    )
    def test_it_is_one_sentence(self, error: Exception) -> None:
        with pytest.raises(ConfigError) as refused, fits_memory("model 'large'", CPU):
            raise error

        assert str(refused.value) == (
            "model 'large' does not fit into the memory of cpu: set frozen-precision=bfloat16 or int8, take a smaller "
            "model, or another device"
        )

    def test_other_errors_stay(self) -> None:
        with pytest.raises(RuntimeError, match="shapes"), fits_memory("a step", CPU):
            raise RuntimeError("shapes do not match")
