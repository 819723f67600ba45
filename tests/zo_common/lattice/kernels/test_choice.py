"""The kernel follows from where the tensors are."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from zo_common.lattice.kernels import cuda as kernel_triton
from zo_common.lattice.kernels.base import Kernel, LatticeTensor
from zo_common.lattice.kernels.choice import KernelName, choose_kernel
from zo_common.lattice.kernels.cpu import NumbaKernel
from zo_common.lattice.kernels.few import MOST_WEIGHTS, NumpyKernel
from zo_common.lattice.kernels.plain import TorchKernel


class _Launched(TorchKernel):
    """In the place of the CUDA kernel, which reads addresses."""

    def peaks(self) -> NDArray[np.int64]:
        return np.zeros(len(self.tensors), np.int64)


@pytest.fixture(autouse=True)
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_triton, "TritonKernel", _Launched)


def _chosen(*devices: str, name: KernelName = "auto") -> Kernel:
    weights = [cast(Any, SimpleNamespace(device=torch.device(d))) for d in devices]
    real = [torch.zeros(3) if d == "cpu" else weight for d, weight in zip(devices, weights, strict=True)]
    tensors = tuple(LatticeTensor(f"w{i}", weight, i, -24, 0) for i, weight in enumerate(real))
    return choose_kernel(tensors, 2, name)


@pytest.mark.parametrize(
    ("devices", "kind"),
    [
        (["cpu"], NumpyKernel),
        (["cpu", "cpu"], NumpyKernel),
        ([], NumpyKernel),
        (["cuda:0"], _Launched),
        (["cuda:1", "cuda:1"], _Launched),
        (["cuda:0", "cuda:1"], TorchKernel),
        (["cuda:0", "cpu"], TorchKernel),
        (["cpu", "mps"], TorchKernel),
        (["mps"], TorchKernel),
    ],
)
def test_each_device_has_its_kernel(devices: list[str], kind: type[Kernel]) -> None:
    assert type(_chosen(*devices)) is kind


def test_a_gpu_on_which_triton_fails_is_left_to_torch_with_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(kernel: Kernel) -> NDArray[np.int64]:
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")

    monkeypatch.setattr(_Launched, "peaks", fail)

    with pytest.warns(UserWarning, match=r"Failed to find C compiler\.\): plain torch moves the weights"):
        assert type(_chosen("cuda:0")) is TorchKernel


@pytest.mark.parametrize("device", ["cpu", "cuda:0", "mps"])
def test_the_reference_is_plain_torch_everywhere(device: str) -> None:
    assert type(_chosen(device, name="torch")) is TorchKernel


def test_many_weights_have_the_compiled_kernel() -> None:
    sizes = ((MOST_WEIGHTS,), (MOST_WEIGHTS, 1))
    tensors = [tuple(LatticeTensor(f"w{i}", torch.zeros(n), i, -24, 0) for i, n in enumerate(size)) for size in sizes]

    assert [type(choose_kernel(each, 2)) for each in tensors] == [NumpyKernel, NumbaKernel]


def test_without_numba_torch_moves_many_weights_with_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zo_common.lattice.kernels.cpu", None)

    with pytest.warns(UserWarning, match=r"plain torch moves the 3 trained weights.*federated-zo-asr\[compiled\]"):
        assert type(_chosen("cpu", name="numba")) is TorchKernel


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            RuntimeError("cannot cache function: no locator available\nfor file cpu.py"),
            "set NUMBA_CACHE_DIR to a folder",
        ),
        (OSError("Could not find/load shared object file"), "install it again"),
    ],
)
def test_a_numba_that_fails_is_left_to_torch_with_a_word(
    monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    class Broken(ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise error

    monkeypatch.setitem(sys.modules, "zo_common.lattice.kernels.cpu", Broken("cpu"))

    with pytest.warns(UserWarning, match=said) as warned:
        assert type(_chosen("cpu", name="numba")) is TorchKernel
    assert str(error).splitlines()[0] in str(warned[0].message)


def test_a_process_with_few_weights_needs_no_compiler() -> None:
    script = (
        "import sys, torch\n"
        "from zo_common.lattice.state import LatticeState\n"
        "state = LatticeState(torch.nn.Linear(80, 64), 'all')\n"
        "state.shift([3], state.epsilon_units(1e-3)), state.checksum()\n"
        "print('numba' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)

    assert done.stdout.strip() == "False"


def test_threads_reach_the_cpu_kernel() -> None:
    kernel = _chosen("cpu", name="numba")

    assert isinstance(kernel, NumbaKernel)
    assert kernel.threads == 2


def test_cuda_without_triton_is_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zo_common.lattice.kernels.cuda", None)

    with pytest.warns(UserWarning, match="plain torch moves the weights"):
        assert type(_chosen("cuda:0")) is TorchKernel
