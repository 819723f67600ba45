"""Attack: a device or a ledger describes tensors with exponents of which no float can be made."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from server.devices.base_models import mismatched_devices
from server.devices.roster import Member
from zo_common.lattice.state import LatticeState
from zo_common.ledger.ledger import tensor_entry

EXTREMES = [(-1024, 1024), (1024, -1024), (-600, 400), (0, 10**9), (-(10**400), 0)]


@pytest.mark.parametrize(("grid", "scale"), EXTREMES)
def test_they_are_refused_where_they_are_read(grid: int, scale: int) -> None:
    with pytest.raises(ValueError, match="exponent out of range"):
        tensor_entry("w", [4], grid, scale)
    hello = {"fingerprint": "ab" * 32, "base_checksum": 1, "tensors": [["w", [4], grid, scale]]}
    found = mismatched_devices(("ab" * 32, 1, ()), [Member(1, 7, 3, hello)])
    assert found == {1: "device 7 described its base model with malformed fields"}


@pytest.mark.parametrize(("grid", "scale"), [(-500, 500), (500, -500)])
def test_of_what_is_read_floats_are_made(grid: int, scale: int) -> None:
    entry = tensor_entry("weight", [1, 1], grid, scale)
    assert np.isfinite(2.0 ** (entry.scale_exponent - entry.grid_exponent))
    model = nn.Linear(1, 1, bias=False)
    model.weight.data = torch.zeros(1, 1)
    state = LatticeState(model, "all", exponents={"weight": (grid, scale)})
    assert state.units([0.0]).tolist() == [[0]]
