"""Rounds on tensors that a calibration round chose first, whose forward passes are counted."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from benchmarks.learning.crowd import Crowd
from benchmarks.learning.lattice_rounds import LatticeRounds
from benchmarks.learning.method import Cost, Settings
from benchmarks.learning.rates import Rate
from zo_common.directions.seeds import client_seed
from zo_common.errors import NonFiniteLoss
from zo_common.estimator.calibration import (
    GroupMeasure,
    agreed_measure,
    by_importance,
    measure_group,
    passes_of_groups,
    shared_out,
)
from zo_common.estimator.step import clip_factors
from zo_common.estimator.tensor_choice import RoundShape, TensorChoice, choose_tensors, standard_error
from zo_common.lattice.trained import measured_groups

_TAIL = 64


class AutoTensors(LatticeRounds):
    """Devices measure their share of the groups, at most a round's forward passes each, and train what is chosen."""

    def __init__(self, crowd: Crowd, settings: Settings, rate: Rate) -> None:
        self._spent = 0
        self.groups = measured_groups(crowd.model)
        self.measures = self._calibrate(crowd, settings)
        directions = settings.local_steps * settings.queries * settings.devices
        shape = RoundShape(directions, settings.devices)
        self.choice: TensorChoice = choose_tensors(self.measures, shape)
        for group, m in self.measures.items():
            print(
                f"  {group}: s {m.signal:.3g} ± {standard_error(m):.2g}, m {m.square:.3g}, t {m.curvature:.3g}, "
                f"R {m.along_signal:.3g} + {m.along_noise:.3g}, s²/mt {m.signal**2 / (m.square * m.curvature):.3g}"
            )
        print(f"  chosen: {self.choice.pattern} ({self.choice.reason})", flush=True)
        crowd.choices.append(f"{self.choice.pattern}: {self.choice.reason}")
        super().__init__(crowd, replace(settings, tensors=self.choice.pattern), rate)

    def _calibrate(self, crowd: Crowd, settings: Settings) -> dict[str, GroupMeasure]:
        passes, each = passes_of_groups(settings.queries * settings.local_steps)
        found: dict[str, list[GroupMeasure]] = {}
        for device, share in enumerate(shared_out(by_importance(self.groups), crowd.devices, each)):
            size = min(settings.batch_size, crowd.examples(device))
            for place, group in enumerate(share):
                seed = client_seed(settings.seed, place, device)
                losses = crowd.losses(self.groups[group], _TAIL, "float32")  # as a device measures
                batch = crowd.batch(device, crowd.draw(device, seed, 0, settings.batch_size))
                self._spent += passes * size
                try:
                    measured = measure_group(
                        crowd.model,
                        self.groups[group],
                        partial(losses, batch),
                        seed,
                        passes,
                        partial(clip_factors, multiple=settings.clip_utterances),
                    )
                except NonFiniteLoss:
                    continue
                found.setdefault(group, []).append(measured)
        return {group: agreed_measure(measures) for group, measures in found.items()}

    def round(self, number: int) -> Cost:
        """As `Method.round`; the first one also costs the calibration."""
        cost = super().round(number)
        return cost + Cost(self._spent) if number == 1 else cost
