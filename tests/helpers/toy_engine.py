"""An engine on two small tensors: real rounds, snapshots and checksums in a millisecond, nothing to train."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from client.device.engine import Engine
from zo_common.config.run import RunConfig
from zo_common.directions.seeds import client_seed
from zo_common.lattice.fingerprint import fingerprint
from zo_common.lattice.state import LatticeState
from zo_common.ledger.record import Contribution, Record


class ToyEngine(Engine):
    """Its base model is the same each time it is loaded; `loads` counts."""

    loads = 0

    def _load_base(self) -> None:
        self.loads += 1
        self.model = nn.Linear(64, 8).requires_grad_(False)
        for number, parameter in enumerate(self.model.parameters()):
            parameter.data = torch.from_numpy(
                np.random.default_rng(number).standard_normal(parameter.shape).astype(np.float32)
            )
        self.fingerprint = fingerprint(self.model)
        self.state = LatticeState(self.model, self.config.trained_tensors, self.config.scale, kernel="torch")
        self.base_checksum = self.state.checksum()
        self.device, self.speech = torch.device("cpu"), None

    def _prepare(self) -> None:
        self.precision = torch.float32
        self._losses = self._choices = None

    def pretend(self, records: list[Record]) -> None:
        """Be at the end of this history, as after syncing."""
        self.rewind(self.start_round)
        self.state.apply([u for record in records for u in record.updates()])
        self.applied = list(records)


def toy_engine(**settings: object) -> ToyEngine:
    """At the base."""
    return ToyEngine(RunConfig(**{"model": "toy", "data": "none", "trained_tensors": "all", **settings}))


def history(rounds: int, salt: int = 0, *, start: ToyEngine | None = None, checksums: bool = True) -> list[Record]:
    """Rounds after `start`'s (or from the base) with the checksums they really reach, or with 0."""
    rng = np.random.default_rng(salt)
    engine = start or toy_engine()
    first = engine.have_round + 1
    records = []
    for server_round in range(first, first + rounds):
        coefficients = (0.01 * rng.standard_normal((1, 2))).astype(np.float32)
        part = Contribution(client_seed(0, server_round, 3 + salt), 3 + salt, coefficients)
        engine.state.apply(part.updates())
        records.append(Record(server_round, engine.state.checksum() if checksums else 0, (part,)))
    engine.state.apply([u for record in records for u in record.updates()], sign=-1)
    return records
