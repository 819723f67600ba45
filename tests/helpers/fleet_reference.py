"""What a fleet's run would be without processes, network and faults: the same devices on the in-memory grid."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from fake_grid import FakeGrid, Memory

from benchmarks.fleet.agreement import settings_of
from benchmarks.fleet.processes import Fleet, Run
from server.rounds.federation import LEDGER_NAME, Federation
from zo_common.ledger.file import read_ledger
from zo_common.ledger.record_codec import encode_record


def record_bytes(folder: Path) -> list[bytes]:
    """Every round of the ledger in a run's folder as its bytes."""
    return [encode_record(record) for record in read_ledger(folder / LEDGER_NAME, tolerate_torn=False).records]


def undisturbed(fleet: Fleet, run: Run, folder: Path) -> list[bytes]:
    """The rounds of an undisturbed run with the settings of `run` and the fleet's devices, which all answer."""
    config = replace(settings_of(fleet, run), output=str(folder / "undisturbed"))
    threads = torch.get_num_threads()
    grid = FakeGrid(config, [Memory() for _ in fleet.names])
    for name, device in zip(fleet.names, grid.devices.values(), strict=True):
        own = {"client-id": fleet.client_id(name), "data": str(fleet.recordings_of(name))}
        device.context.node_config = dict(own)
    try:
        torch.set_num_threads(1)
        Federation(config, grid).run()
    finally:
        torch.set_num_threads(threads)
    return record_bytes(Path(config.output))
