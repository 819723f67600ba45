"""One base model, one fingerprint."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from zo_common.lattice import fingerprint as fingerprint_module
from zo_common.lattice.fingerprint import fingerprint
from zo_common.lattice.grid import grid_exponent, snap
from zo_common.lattice.state import LatticeState
from zo_common.lattice.update import Update

Models = Callable[..., nn.Module]


def test_the_walk_is_name_shape_and_snapped_bytes(module_of: Models) -> None:
    values = {"b.weight": torch.tensor([[0.3, -1.7, 0.0], [1e-9, 2.5, -0.125]]), "a": torch.tensor([0.1])}
    digest = hashlib.sha256()
    for name in sorted(values):
        value, grid = values[name].double().numpy(), 2.0 ** grid_exponent(values[name])
        digest.update(struct.pack("<I", len(name)) + name.encode() + struct.pack("<I", value.ndim))
        digest.update(struct.pack(f"<{value.ndim}Q", *value.shape))
        digest.update((np.rint(value / grid) * grid).astype("<f4").tobytes())

    assert fingerprint(module_of(**values)) == digest.hexdigest()


@pytest.mark.parametrize("pattern", ["all", "0.*", "*bias"])
@pytest.mark.parametrize("scale", ["unit", "rms"])
def test_snapping_and_the_choice_of_trained_tensors_do_not_matter(
    small_model: Models, pattern: str, scale: Any
) -> None:
    model = small_model()
    expected = fingerprint(model)

    LatticeState(model, pattern, scale, threads=1)

    assert fingerprint(model) == expected
    assert fingerprint(small_model()) == expected


def test_a_weight_that_snaps_down_to_a_power_of_two_keeps_the_fingerprint(module_of: Models) -> None:
    model = module_of(w=torch.tensor([1.0 + 2.0**-23, 0.1]))
    expected = fingerprint(model)

    model.w.data = snap(model.w.data, grid_exponent(model.w.data))

    assert model.w[0] == 1.0
    assert fingerprint(model) == expected


@pytest.mark.parametrize("name", ["0.weight", "0.bias", "2.weight", "2.bias", "3.weight"])
def test_one_weight_changed_by_one_grid_unit_changes_it(small_model: Models, name: str) -> None:
    model = small_model()
    state = LatticeState(model, name, threads=1)
    expected = fingerprint(model)

    state.tensors[0].weight.view(-1)[1] += 2.0 ** state.tensors[0].grid_exponent

    assert fingerprint(model) != expected


def test_training_and_undoing_it(small_model: Models) -> None:
    model = small_model()
    expected = fingerprint(model)
    state = LatticeState(model, "0.*", threads=1)

    state.apply([Update(1, 1e-3)])
    trained = fingerprint(model)
    state.apply([Update(1, 1e-3)], sign=-1)

    assert trained != expected
    assert fingerprint(model) == expected


def test_names_and_shapes_count(module_of: Models) -> None:
    values = torch.arange(6.0)
    found = {
        fingerprint(module_of(a=values)),
        fingerprint(module_of(b=values)),
        fingerprint(module_of(a=values.reshape(2, 3))),
        fingerprint(module_of(a=values.reshape(3, 2))),
        fingerprint(module_of(a=values[:3], b=values[3:])),
    }

    assert len(found) == 5


def test_tied_tensors_count_once_however_they_are_tied(small_model: Models) -> None:
    def build(tie: str) -> nn.Module:
        model = nn.Module()
        model.z, model.b = nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False)
        model.b.weight.data = torch.arange(6.0).reshape(2, 3)
        if tie == "parameter":
            model.z.weight = model.b.weight
        elif tie == "storage":
            model.z.weight = nn.Parameter(model.b.weight.data)
        else:
            model.z.weight.data = model.b.weight.data.clone()
        return model

    assert fingerprint(build("parameter")) == fingerprint(build("storage"))
    assert fingerprint(build("parameter")) != fingerprint(build("copied"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_equal_values_of_another_dtype_have_one_fingerprint(module_of: Models, dtype: torch.dtype) -> None:
    values = torch.tensor([0.5, -1.75, 3.0, 0.0])

    assert fingerprint(module_of(w=values.to(dtype))) == fingerprint(module_of(w=values))


def test_scalars_and_empty_tensors_have_a_place(module_of: Models) -> None:
    scalar, empty = torch.tensor(0.5), torch.empty(0, 3)
    found = {
        fingerprint(module_of(a=scalar)),
        fingerprint(module_of(a=scalar.reshape(1))),
        fingerprint(module_of(a=scalar, b=empty)),
        fingerprint(module_of(a=scalar, b=empty.reshape(3, 0))),
    }

    assert len(found) == 4


def test_gradients_mode_and_buffers_do_not_matter(small_model: Models) -> None:
    model = small_model()
    expected = fingerprint(model)

    model.eval().requires_grad_(False)
    model.register_buffer("running", torch.ones(3))

    assert fingerprint(model) == expected


def test_chunks_do_not_matter(small_model: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = fingerprint(small_model())

    monkeypatch.setattr(fingerprint_module, "_CHUNK", 7)

    assert fingerprint(small_model()) == expected


def test_memory_layout_does_not_matter(module_of: Models) -> None:
    values = torch.arange(12.0).reshape(3, 4)
    model = module_of(w=values)
    expected = fingerprint(model)

    model.w = nn.Parameter(values.t().contiguous().t())

    assert not model.w.is_contiguous()
    assert fingerprint(model) == expected
