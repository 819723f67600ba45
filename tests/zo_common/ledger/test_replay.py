"""Base model + ledger is the model the server had, to the bit, in any process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from zo_common.aggregation.mean import ClientScalars, aggregate
from zo_common.directions.seeds import client_seed
from zo_common.errors import ChecksumMismatch, WrongBaseModel
from zo_common.estimator.local_steps import run_local_steps
from zo_common.estimator.settings import EstimatorConfig
from zo_common.lattice.fingerprint import fingerprint
from zo_common.lattice.state import LatticeState
from zo_common.ledger import replay as replay_module
from zo_common.ledger.file import write_ledger
from zo_common.ledger.ledger import Ledger, LedgerHeader, decode_ledger, describe_tensors, encode_ledger
from zo_common.ledger.record import Record
from zo_common.ledger.replay import replay, restore_state

Models = Callable[..., nn.Module]
Reader = Callable[[nn.Module], dict[str, bytes]]
ROUNDS, CLIENTS, STEPS, RATE, RUN_SEED = 3, (1, 2, 9), 2, 1e-2, 77
CONFIG = EstimatorConfig("two-sided", 3, 1e-3)


def _train(model: nn.Module, pattern: str = "all", scale: Any = "rms") -> Ledger:
    """A federated run in one process: the model ends as the server's."""
    base = fingerprint(model)
    state = LatticeState(model, pattern, scale, threads=1)
    header = LedgerHeader(
        base, state.checksum(), "small", pattern, scale, CONFIG.epsilon, CONFIG.estimator, RUN_SEED, "now",
        describe_tensors(state),
    )  # fmt: skip
    records = []
    for server_round in range(1, ROUNDS + 1):
        replies = [_client_round(state, server_round, client) for client in CLIENTS]
        contributions = aggregate(replies, RATE)
        state.apply([u for c in contributions for u in c.updates()])
        records.append(Record(server_round, state.checksum(), contributions))
    return Ledger(header, tuple(records))


def _client_round(state: LatticeState, server_round: int, client: int) -> ClientScalars:
    inputs = torch.randn(4 + client, 3, generator=torch.Generator().manual_seed(client))
    seed = client_seed(RUN_SEED, server_round, client)

    def losses() -> torch.Tensor:
        return (state.model(inputs) - inputs[:, :2]).square().mean(dim=1)

    result = run_local_steps(state, lambda _: losses, seed, STEPS, CONFIG, RATE)
    return ClientScalars(client, seed, len(inputs), result.projected_grads)


@pytest.mark.parametrize("pattern", ["all", "0.*", "*weight,!2.*"])
@pytest.mark.parametrize("scale", ["unit", "rms"])
def test_replay_equals_the_live_weights(small_model: Models, weight_bytes: Reader, pattern: str, scale: Any) -> None:
    live, late = small_model(), small_model()
    ledger = decode_ledger(encode_ledger(_train(live, pattern, scale)))

    state = restore_state(late, ledger.header, threads=2)
    reached = replay(state, ledger)

    assert weight_bytes(late) == weight_bytes(live)
    assert weight_bytes(late) != weight_bytes(small_model())
    assert reached == ledger.records[-1].checksum == state.checksum()


def test_every_round_can_be_replayed_alone(small_model: Models) -> None:
    ledger = _train(small_model())
    state = restore_state(small_model(), ledger.header, threads=1)

    for record in ledger.records:
        assert replay(state, Ledger(ledger.header, (record,))) == record.checksum
        assert state.checksum() == record.checksum


@pytest.mark.parametrize("batch", [1, 5, 54, 4096])
def test_progress_and_batches_change_nothing(small_model: Models, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    ledger = _train(small_model())
    total = ROUNDS * len(CLIENTS) * STEPS * CONFIG.num_queries
    monkeypatch.setattr(replay_module, "BATCH", batch)
    seen: list[tuple[int, int]] = []

    replay(restore_state(small_model(), ledger.header), ledger, lambda done, of: seen.append((done, of)))

    assert seen == [(min(n, total), total) for n in range(batch, total + batch, batch)]


def test_an_empty_ledger_is_the_base(small_model: Models, weight_bytes: Reader) -> None:
    ledger = _train(small_model())
    model = small_model()
    state = restore_state(model, ledger.header)
    before = weight_bytes(model)

    assert replay(state, replace(ledger, records=())) == ledger.header.base_checksum
    assert weight_bytes(model) == before


def test_another_process_with_other_threads_reaches_the_same_weights(small_model: Models, tmp_path: Path) -> None:
    live = small_model()
    torch.save(small_model().state_dict(), tmp_path / "base.pt")
    write_ledger(tmp_path / "ledger.zo", _train(live))
    program = """
import sys, pathlib, torch
from torch import nn
from zo_common.ledger.file import read_ledger
from zo_common.ledger.replay import replay, restore_state
folder = pathlib.Path(sys.argv[1])
model = nn.Sequential(nn.Linear(3, 11), nn.Tanh(), nn.LayerNorm(11), nn.Linear(11, 2, bias=False))
model.load_state_dict(torch.load(folder / "base.pt"))
ledger = read_ledger(folder / "ledger.zo")
print(replay(restore_state(model, ledger.header, threads=3), ledger))
torch.save(model.state_dict(), folder / "adapted.pt")
"""

    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True, timeout=120
    )

    adapted = torch.load(tmp_path / "adapted.pt")
    assert all(torch.equal(adapted[name], weight) for name, weight in live.state_dict().items())
    assert int(run.stdout) == LatticeState(live, "all", exponents=_exponents(small_model())).checksum()


def _exponents(model: nn.Module) -> dict[str, tuple[int, int]]:
    return LatticeState(model, "all", "rms", threads=1).exponents


def test_a_model_is_replayed_as_its_base_state_is(small_model: Models, weight_bytes: Reader) -> None:
    live, late, other = small_model(), small_model(), small_model(seed=1)
    ledger = _train(live)
    before = weight_bytes(other)

    assert replay(late, ledger) == ledger.records[-1].checksum
    with pytest.raises(WrongBaseModel):
        replay(other, ledger)

    assert weight_bytes(late) == weight_bytes(live)
    assert weight_bytes(other) == before


def test_the_wrong_base_is_refused_untouched(small_model: Models, weight_bytes: Reader) -> None:
    ledger = _train(small_model())
    other = small_model(seed=1)
    before = weight_bytes(other)

    with pytest.raises(WrongBaseModel, match=r"\(small\): load that model") as caught:
        restore_state(other, ledger.header)

    assert ledger.header.fingerprint[:16] in str(caught.value)
    assert fingerprint(other)[:16] in str(caught.value)
    assert weight_bytes(other) == before


def test_an_adapted_model_is_no_base(small_model: Models) -> None:
    model = small_model()
    ledger = _train(model)

    with pytest.raises(WrongBaseModel):
        restore_state(model, ledger.header)


def test_a_wrong_base_checksum_is_a_mismatch(small_model: Models) -> None:
    header = _train(small_model()).header

    with pytest.raises(ChecksumMismatch):
        restore_state(small_model(), replace(header, base_checksum=header.base_checksum ^ 1))
    # a server without the model does not know it
    restore_state(small_model(), replace(header, base_checksum=0))


def test_a_wrong_final_checksum_is_a_mismatch(small_model: Models) -> None:
    ledger = _train(small_model())
    last = ledger.records[-1]

    with pytest.raises(ChecksumMismatch, match=f"the ledger records {last.checksum ^ 1:016x}"):
        wrong = replace(ledger, records=(*ledger.records[:-1], replace(last, checksum=last.checksum ^ 1)))
        replay(restore_state(small_model(), ledger.header), wrong)
    with pytest.raises(ChecksumMismatch):
        replay(restore_state(small_model(), ledger.header), replace(ledger, records=(*ledger.records[:1], last)))
    unknown = replace(ledger, records=(*ledger.records[:-1], replace(last, checksum=0)))
    assert replay(restore_state(small_model(), ledger.header), unknown) == last.checksum
