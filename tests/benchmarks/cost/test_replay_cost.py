"""The measured round holds scalars of the size that training gives."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.cost.replay_cost import Size, replies_of
from benchmarks.scale.scaling import projected_gradient
from zo_common.wire.plan import decode_reply


def test_scalars_are_as_large_as_measured_ones() -> None:
    _, replies = replies_of(Size(clients=200))
    scalars = np.stack([decode_reply(data).projected_grads for data in replies.values()])
    assert float(np.sqrt(np.square(scalars).mean())) == pytest.approx(projected_gradient(), rel=0.05)
