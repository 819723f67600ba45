"""Perturbing and restoring: the plain way leaves traces, the lattice none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.cost.drift import distance, lattice_drift, plain_drift


def _model() -> nn.Module:
    generator = torch.Generator().manual_seed(4)
    model = nn.Linear(40, 30)
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.requires_grad_(False)


def test_distance_of_known_tensors() -> None:
    found = distance(
        [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])], [torch.tensor([3.0, 0.5]), torch.tensor([[4.0]])]
    )
    assert found == {"share_changed": pytest.approx(1 / 3), "largest_change": 0.5, "relative_l2": pytest.approx(0.1)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_plain_way_drifts_and_leaves_the_given_weights_alone(dtype: torch.dtype) -> None:
    weights = list(_model().parameters())
    before = [weight.clone() for weight in weights]
    found = plain_drift(weights, dtype, 5, 1e-3)
    assert 0 < found["share_changed"] <= 1 and found["largest_change"] > 0 and found["relative_l2"] > 0
    assert all(torch.equal(a, b) for a, b in zip(weights, before, strict=True))


def test_coarser_formats_drift_further() -> None:
    weights = list(_model().parameters())
    far = [
        plain_drift(weights, dtype, 5, 1e-3)["relative_l2"] for dtype in (torch.float32, torch.float16, torch.bfloat16)
    ]
    assert far == sorted(far)


def test_the_lattice_does_not_drift() -> None:
    assert lattice_drift(_model(), "all", 20, 1e-3) == {
        "share_changed": 0.0,
        "largest_change": 0.0,
        "relative_l2": 0.0,
        "checksum_equal": True,
    }
