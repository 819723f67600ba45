"""The lattice state refuses a base that does not fit, and weights that were written to behind its back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from zo_common.errors import LatticeOverflow, UnsupportedModel
from zo_common.estimator.settings import EstimatorConfig
from zo_common.estimator.step import zo_step
from zo_common.lattice.kernels.choice import KernelName
from zo_common.lattice.state import LatticeState
from zo_common.lattice.update import Update

Models = Callable[..., nn.Module]
Reader = Callable[[nn.Module], dict[str, bytes]]
KERNELS = pytest.mark.parametrize("kernel", ["numpy", "numba", "torch"])
STEP = [Update(1, 1e-3)]


@KERNELS
@pytest.mark.parametrize(
    ("largest", "grid"), [(1.0, -25), (-1.0, -25), (1.0 + 2.0**-23, -24), (2.0, -24), (1e31, -26), (3e38, -26)]
)
def test_a_base_beyond_the_given_grid_is_refused(
    module_of: Models, weight_bytes: Reader, largest: float, grid: int, kernel: KernelName
) -> None:
    model = module_of(a=torch.tensor([0.125]), w=torch.tensor([0.5, largest]))
    before = weight_bytes(model)

    with pytest.raises(LatticeOverflow, match=rf"^tensor 'w' .* grid 2\*\*{grid}"):
        LatticeState(model, "all", exponents={"w": (grid, 0)}, threads=1, kernel=kernel)

    assert weight_bytes(model) == before


@KERNELS
@pytest.mark.parametrize(("largest", "grid"), [(1.0, -24), (-1.0, -24), (1.0 + 2.0**-25, -24), (0.25, -26), (0.0, -60)])
def test_a_base_at_the_border_of_the_given_grid_is_accepted(
    module_of: Models, largest: float, grid: int, kernel: KernelName
) -> None:
    model = module_of(w=torch.tensor([largest, 0.0]))

    state = LatticeState(model, "all", exponents={"w": (grid, 0)}, threads=1, kernel=kernel)

    assert state.exponents == {"w": (grid, 0)}
    if largest:
        assert abs(model.w[0].item()) == 2.0 ** (grid + 24)


def test_exponents_of_some_tensors_leave_the_others_their_own(module_of: Models) -> None:
    values = {"a": torch.tensor([1.0]), "b": torch.tensor([1.0])}

    state = LatticeState(module_of(**values), "all", exponents={"a": (-20, 3)}, threads=1)

    assert state.exponents == {"a": (-20, 3), "b": (-23, 0)}


def _add_without_grad(model: nn.Module) -> None:
    with torch.no_grad():
        model.w.add_(0.25)


def _add_in_inference(model: nn.Module) -> None:
    with torch.inference_mode():
        model.w.mul_(0.5)


WRITES = {
    "load_state_dict": lambda m: m.load_state_dict({k: 0.5 * t for k, t in m.state_dict().items()}),
    "load_state_dict, equal values": lambda m: m.load_state_dict(m.state_dict()),
    "load_state_dict, assigned": lambda m: m.load_state_dict(
        {k: t.clone() for k, t in m.state_dict().items()}, assign=True
    ),
    "in place": _add_without_grad,
    "in place in inference mode": _add_in_inference,
    "through a detached view": lambda m: m.w.detach().add_(0.25),
    "initialised": lambda m: nn.init.uniform_(m.w),
    "an optimizer's step": lambda m: (m.w.sum().backward(), torch.optim.SGD([m.w], lr=0.1).step()),
}


@KERNELS
@pytest.mark.parametrize("write", WRITES.values(), ids=list(WRITES))
def test_a_write_behind_the_back_of_the_lattice_is_detected(
    module_of: Models, weight_bytes: Reader, write: Callable[[nn.Module], object], kernel: KernelName
) -> None:
    model = module_of(w=torch.tensor([0.5, -1.0, 0.125]))
    state = LatticeState(model, "all", threads=1, kernel=kernel)
    state.apply(STEP)
    write(model)
    written = weight_bytes(model)

    for _ in range(2):
        with pytest.raises(UnsupportedModel, match="'w' was moved, replaced or written to after the lattice was built"):
            state.apply(STEP)

    assert weight_bytes(model) == written
    LatticeState(model, "all", threads=1, kernel=kernel).apply(STEP)


@KERNELS
def test_a_write_in_the_middle_of_a_step_is_detected(module_of: Models, kernel: KernelName) -> None:
    model = module_of(w=torch.tensor([0.5, -1.0, 0.125]))
    state = LatticeState(model, "all", threads=1, kernel=kernel)

    def losses() -> torch.Tensor:
        model.w.detach().mul_(0.5)
        return model.w.detach().sum().reshape(1)

    with pytest.raises(UnsupportedModel, match="written to"):
        zo_step(state, losses, 1, 0, EstimatorConfig(num_queries=2, epsilon=1e-2), 1e-3)


def test_a_module_that_was_replaced_is_detected_before_a_checksum_is_told(small_model: Models) -> None:
    model = small_model()
    state = LatticeState(model, "all", threads=1)
    before = state.checksum()
    model[0] = nn.Linear(3, 11)

    with pytest.raises(UnsupportedModel, match=r"module of tensor '0\.bias' was replaced"):
        state.checksum()
    assert before == LatticeState(small_model(), "all", threads=1).checksum()


@KERNELS
def test_what_leaves_the_weights_alone_is_no_write(module_of: Models, weight_bytes: Reader, kernel: KernelName) -> None:
    model = module_of(v=torch.ones(2), w=torch.tensor([0.5, -1.0, 0.125]))
    state = LatticeState(model, "w", threads=1, kernel=kernel)
    before = weight_bytes(model)["w"]
    state.apply(STEP)

    model.requires_grad_(False).train().eval()
    model.state_dict()
    model.to("cpu", torch.float32)
    model.load_state_dict({"v": torch.zeros(2)}, strict=False)
    with torch.inference_mode():
        model.w.sum()
    state.apply(STEP, sign=-1)

    assert weight_bytes(model)["w"] == before


def test_parameters_made_in_inference_mode_can_be_trained(module_of: Models, weight_bytes: Reader) -> None:
    with torch.inference_mode():
        model = module_of(w=torch.tensor([0.5, -1.0]))
        state = LatticeState(model, "all", threads=1)
        before = weight_bytes(model)
        state.apply(STEP)
        assert weight_bytes(model) != before
        state.apply(STEP, sign=-1)

    assert weight_bytes(model) == before


def test_two_states_of_one_model_share_its_weights(module_of: Models, weight_bytes: Reader) -> None:
    model = module_of(v=torch.ones(2), w=torch.ones(3))
    first, second = LatticeState(model, "v", threads=1), LatticeState(model, "w", threads=1)
    before = weight_bytes(model)

    for sign in (1, -1):
        first.apply(STEP, sign)
        second.apply(STEP, sign)

    assert weight_bytes(model) == before
