"""A run that came to nothing says so in one sentence and exits 1, with its best state exported."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_grid import FakeGrid
from flwr.app import Context, RecordDict
from toy_engine import history

from server.app import friendly_main
from server.deploy import app as deploy_app
from server.guards.logged_guard import negated
from server.rounds.verdict import moved, worse
from zo_common.config.run import RunConfig
from zo_common.lattice.state import LatticeState
from zo_common.ledger.file import read_ledger
from zo_common.ledger.record import Record
from zo_common.models.load import load_model
from zo_common.wire.plan import Status, decode_reply, encode_reply

Settings = Callable[..., RunConfig]
Grids = Callable[..., FakeGrid]
START = {"wer": 0.5, "loss": 1.0}
NAN = float("nan")


@pytest.mark.parametrize(
    ("after", "word"),
    [
        ({"wer": 0.4, "loss": 0.9}, ""),
        ({"wer": 0.5, "loss": 1.0}, ""),
        ({"wer": 0.6, "loss": 0.9}, "the result is worse than its start: WER 50.0% → 60.0%"),
        ({"wer": 0.4, "loss": 1.1}, "the result is worse than its start: loss 1.000 → 1.100"),
        ({"wer": 3.969, "loss": NAN}, "the result is worse than its start: WER 50.0% → 396.9%, loss 1.000 → nan"),
        (None, ""),
        ({"loss": 0.9}, ""),
        ({"loss": 1.1}, "the result is worse than its start: loss 1.000 → 1.100"),
    ],
)
def test_what_is_worse(after: dict[str, Any] | None, word: str) -> None:
    assert worse(START, after) == word


def test_nothing_is_worse_than_nothing() -> None:
    assert worse(None, START) == ""


def test_a_start_that_was_not_decoded_has_a_loss() -> None:
    assert worse({"loss": 1.0}, {"wer": 0.6, "loss": 0.9}) == ""


def _end(config: RunConfig, grid: FakeGrid, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit status and last line of `flwr run`."""
    context = Context(1, 1, {}, RecordDict(), config.to_mapping())
    status = 0
    try:
        friendly_main()(grid, context)
    except SystemExit as ended:
        status = int(ended.code or 0)
    return status, capsys.readouterr().out.splitlines()[-1]


def _verdict(config: RunConfig) -> str:
    return str(json.loads((Path(config.output) / "evaluation.json").read_text())["verdict"])


def test_a_run_without_a_valid_reply(settings: Settings, grid_of: Grids, capsys: pytest.CaptureFixture[str]) -> None:
    config = settings(num_server_rounds=2)
    grid = grid_of(config)
    for device in grid.devices.values():
        device.after = lambda _, payload: encode_reply(
            replace(decode_reply(payload), status=Status.ERROR, projected_grads=np.zeros((0, 0), np.float32))
        )

    status, said = _end(config, grid, capsys)

    assert status == 1
    assert said.startswith("error: no round had a valid reply, no model is exported")
    assert not (Path(config.output) / "model").exists()


def test_a_run_that_nothing_made_better_ends_with_the_base_model(
    ctc_settings: Settings, grid_of: Grids, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter(range(99))
    monkeypatch.setattr("server.guards.held_out_guard.utterance_losses", lambda *_: np.full(3, 1.0 + next(looks)))
    config = ctc_settings(num_server_rounds=9, guard_every=1)

    status, said = _end(config, grid_of(config), capsys)

    ledger = read_ledger(Path(config.output) / "ledger.zo")
    assert (status, ledger.last_round) == (1, 3)
    assert said == f"error: {_verdict(config)}"
    assert said.startswith("error: no round made the model better on the guard's speech")
    exported = load_model(str(Path(config.output) / "model")).model
    exponents = ledger.header.exponents
    assert LatticeState(exported, ",".join(exponents), "unit", exponents=exponents).checksum() == (
        ledger.header.base_checksum
    )
    found = json.loads((Path(config.output) / "evaluation.json").read_text())
    assert found["after"]["server_round"] == 3 and found["after"]["utterances"] == 3  # all of them are decoded
    assert found["guard"]["closing"]["stopped"] is True
    assert found["guard"]["taken_back"] == [[1, 1], [2, 2], [3, 3]]


@pytest.mark.parametrize("guard", [{"guard_split": "none"}, {"eval_split": ""}])
def test_a_run_that_never_moved_is_told_without_a_guard_too(
    ctc_settings: Settings,
    grid_of: Grids,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    guard: dict[str, str],
) -> None:
    monkeypatch.setattr(RunConfig, "learning_rate_at", lambda *_: 0.0)
    config = ctc_settings(num_server_rounds=2, **guard)

    status, said = _end(config, grid_of(config), capsys)

    ledger = read_ledger(Path(config.output) / "ledger.zo")
    assert [(len(r.contributions), r.checksum) for r in ledger.records] == [(3, ledger.header.base_checksum)] * 2
    assert (status, said) == (1, f"error: {_verdict(config)}")
    assert said.startswith("error: no round changed the model, the base model is exported unchanged")


@pytest.mark.parametrize(("rate", "word"), [(0.0, "no round changed the model"), (1e-3, "")])
def test_a_server_without_a_model_notices_that_nothing_moved(
    ctc_settings: Settings,
    grid_of: Grids,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    rate: float,
    word: str,
) -> None:
    monkeypatch.setattr(RunConfig, "learning_rate_at", lambda *_: rate)
    config = ctc_settings(num_server_rounds=2, server_model=False, guard_split="none", eval_split="")

    status, said = _end(config, grid_of(config), capsys)

    assert (status, bool(_verdict(config))) == ((1, True) if word else (0, False))
    if word:
        assert said == f"error: {_verdict(config)}"
        assert said.startswith(f"error: {word}, the ledger leads to the base model")


def test_updates_that_undo_each_other_moved_nothing() -> None:
    records = tuple(history(3))
    assert moved(records)
    assert not moved((*records, Record(4, 0, negated(records))))
    assert moved((*records, Record(4, 0, negated(records[1:]))))


@pytest.mark.parametrize("server_model", [True, False])
def test_a_run_that_stops_exports_its_last_good_state(
    ctc_settings: Settings, grid_of: Grids, capsys: pytest.CaptureFixture[str], server_model: bool
) -> None:
    """From round 2 on all scalars would lead out of the lattice."""
    config = ctc_settings(num_server_rounds=9, server_model=server_model, guard_split="none", max_scalar=1e30)
    grid = grid_of(config)

    def too_large(server_round: int, payload: bytes) -> bytes:
        if server_round == 1 or payload[:2] != b"ZR":
            return payload
        reply = decode_reply(payload)
        return encode_reply(replace(reply, projected_grads=np.full_like(reply.projected_grads, 1e20)))

    for device in grid.devices.values():
        device.after = too_large

    status, said = _end(config, grid, capsys)

    ledger = read_ledger(Path(config.output) / "ledger.zo")
    assert (status, said) == (1, f"error: {_verdict(config)}")
    assert "3 rounds in a row had fewer than 1 valid replies (last: 3 out-of-range)" in said
    assert [len(record.contributions) for record in ledger.records] == [3, 0, 0, 0]
    if not server_model:
        assert not (Path(config.output) / "model").exists()
        return
    exported = load_model(str(Path(config.output) / "model")).model
    exponents = ledger.header.exponents
    state = LatticeState(exported, ",".join(exponents), "unit", exponents=exponents)
    assert state.checksum() == ledger.records[0].checksum
    after = json.loads((Path(config.output) / "evaluation.json").read_text())["after"]
    assert after["server_round"] == 4


def test_a_result_that_is_worse_fails_a_deployments_run(
    ctc_settings: Settings, grid_of: Grids, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guard's speech is another than the reported one, and found the run better."""
    losses = iter([1.0, 0.9, 0.8, 0.9])
    monkeypatch.setattr("server.guards.held_out_guard.utterance_losses", lambda *_: np.full(3, next(losses)))
    monkeypatch.setattr("sys.tracebacklimit", 1000, raising=False)  # it is lowered for good
    reported = iter([1.0, 1.5])
    monkeypatch.setattr("zo_common.speech.evaluation.held_out_loss", lambda *_: next(reported))
    config = ctc_settings(num_server_rounds=2)
    context = Context(1, 1, {}, RecordDict(), config.to_mapping())

    with pytest.raises(deploy_app.RunFailed, match=r"the result is worse than its start: .*loss 1.000 → 1.500"):
        deploy_app.app(grid_of(config), context)
