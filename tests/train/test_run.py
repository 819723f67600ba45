"""Training in one process: the same rounds, files and bits as a federation, and a ledger that goes on in either."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fake_grid import FakeGrid

from client.device.warm import warm_engine
from server.rounds.events import Events
from server.rounds.federation import Federation
from server.run.log import RoundReport
from train import one_process, train
from train.one_process import OneProcess
from train.run import config_for, run_here
from zo_common.config.run import RunConfig
from zo_common.errors import ConfigError, DataError, LatticeOverflow, ModelNotFound
from zo_common.lattice.fingerprint import fingerprint
from zo_common.ledger.file import read_ledger
from zo_common.ledger.ledger import Ledger
from zo_common.ledger.replay import replay, restore_state
from zo_common.models.load import load_model
from zo_common.wire.plan import Plan

Settings = Callable[..., RunConfig]


def _at(config: RunConfig, output: Path) -> RunConfig:
    return replace(config, output=str(output))


def _records(config: RunConfig) -> list[bytes]:
    return [b"".join(c.coefficients.tobytes() for c in r.contributions) for r in _ledger(config).records]


def _ledger(config: RunConfig) -> Ledger:
    return read_ledger(Path(config.output) / "ledger.zo", tolerate_torn=False)


def _federated(config: RunConfig, grid: FakeGrid) -> Federation:
    """With one device that has all the recordings."""
    grid[0].context.node_config.update({"client-id": 0, "own-data": True})
    federation = Federation(config, grid)
    federation.run()
    return federation


def test_one_device_makes_the_passes_of_eight(settings: Settings, mini_corpus: Path) -> None:
    usual = config_for(mini_corpus, {"model": settings().model})
    given = config_for(mini_corpus, {"model": settings().model, "num-server-rounds": 7, "guard_every": 3})

    assert usual.num_server_rounds == 8 * RunConfig().num_server_rounds
    assert usual.guard_every == 8 * RunConfig().guard_every
    assert (given.num_server_rounds, given.guard_every) == (7, 3)


def test_a_run_has_the_bits_of_a_federation_of_one_device(
    settings: Settings, grid_of: Callable[..., FakeGrid], tmp_path: Path
) -> None:
    here, there = settings(), _at(settings(), tmp_path / "federated")

    run_here(here)
    _federated(there, grid_of(there, 1))

    assert _records(here) == _records(there)
    assert [r.checksum for r in _ledger(here).records] == [r.checksum for r in _ledger(there).records]
    assert len(_ledger(here).records) == 3


def test_the_result_its_files_and_what_is_told(settings: Settings) -> None:
    config = settings(eval_split="test", guard_split="none")
    told: list[RoundReport] = []
    given = {key: value for key, value in config.to_mapping().items() if key != "data"}

    result = train(config.data, on_round=told.append, **given)

    assert [report.server_round for report in told] == [1, 2, 3]
    assert result.output == Path(config.output)
    assert result.before is not None and result.after is not None
    assert result.before["utterances"] == 3
    adapted = load_model(config.model).model
    assert f"{replay(adapted, result.ledger):016x}" == result.checksum
    exported = load_model(str(result.output / "model")).model
    for (name, ours), theirs in zip(adapted.named_parameters(), exported.parameters(), strict=True):
        assert ours.equal(theirs), name
    for name in ("rounds.jsonl", "curve.jsonl", "settings.jsonl", "evaluation.json"):
        assert (result.output / name).exists()


@pytest.mark.parametrize("guarded", [True, False])
def test_an_interrupted_run_resumes_to_the_same_bits(settings: Settings, tmp_path: Path, guarded: bool) -> None:
    changes = {"guard_split": "test" if guarded else "none", "guard_every": 2, "num_server_rounds": 5}
    whole, torn = settings(**changes), _at(settings(**changes), tmp_path / "torn")
    run_here(whole)

    def interrupt(report: RoundReport) -> None:
        if report.server_round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_here(torn, Events(on_round=interrupt))
    assert len(_ledger(torn).records) == 2
    run_here(replace(torn, resume=True))

    assert _records(torn) == _records(whole)
    assert [r.checksum for r in _ledger(torn).records] == [r.checksum for r in _ledger(whole).records]


def test_a_ledger_goes_on_in_a_federation_and_back(
    settings: Settings, grid_of: Callable[..., FakeGrid], tmp_path: Path
) -> None:
    config = settings(num_server_rounds=1)
    run_here(config)

    two = replace(config, num_server_rounds=2, resume=True)
    federation = Federation(two, grid_of(two, 3))
    federation.run()
    assert federation.global_model is not None and federation.resumed
    three = replace(config, num_server_rounds=3, resume=True)
    run_here(three)

    ledger = _ledger(three)
    assert [len(r.contributions) for r in ledger.records] == [1, 3, 1]
    assert replay(load_model(config.model).model, ledger) == ledger.records[-1].checksum


def test_one_model_is_loaded(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    for module in ("zo_common.replica", "server.run.model"):
        monkeypatch.setattr(f"{module}.load_model", lambda source, **_: loaded.append(source) or load_model(source))

    run_here(settings())

    assert loaded == [settings().model]


def test_weights_that_were_built_anew_come_back_to_the_ledgers_last_state(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from client.device.engine import Engine

    real = Engine._local_steps

    def overflow(self: Engine, plan: Plan, *others: object) -> object:
        if plan.server_round == 3:
            raise LatticeOverflow("the weights left the lattice")
        return real(self, plan, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "_local_steps", overflow)
    config = settings(num_server_rounds=4)
    run_here(config)

    ledger = _ledger(config)
    assert [len(r.contributions) for r in ledger.records] == [1, 1, 0, 1]
    assert ledger.records[2].checksum == ledger.records[1].checksum != ledger.header.base_checksum
    assert replay(load_model(config.model).model, ledger) == ledger.records[-1].checksum


def test_a_calibration_chooses_the_tensors(settings: Settings) -> None:
    config = settings(trained_tensors="auto", num_queries=4, local_steps=4, learning_rate="auto", num_server_rounds=1)

    run_here(config)

    chosen = json.loads((Path(config.output) / "tensors.json").read_text())["pattern"]
    assert _ledger(config).header.pattern == chosen != "auto"


def test_what_the_weights_are_is_what_the_device_has_applied(settings: Settings) -> None:
    config = settings()
    place = OneProcess(config)
    model = place.model_of(config)

    assert model.state is warm_engine(config).state
    assert model.model is warm_engine(config).model
    assert model.tensors[0].name in dict(warm_engine(config).model.named_parameters())


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"secure_aggregation": True, "directions": "shared"}, "secure-aggregation is True"),
        ({"evaluate_on": "clients"}, "evaluate-on is 'clients'"),
        ({"server_model": False}, "server-model is False"),
        ({"drop_out": 0.5}, "drop-out is 0.5"),
        ({"min_clients": 2}, "min-clients is 2"),
        ({"min_replies": 2}, "min-replies is 2"),
        ({"late_joiners": 1}, "late-joiners is 1"),
    ],
)
def test_what_is_for_several_devices_is_refused(settings: Settings, changes: dict[str, object], word: str) -> None:
    given = {k: v for k, v in settings(**changes).to_mapping().items() if k != "data"}

    with pytest.raises(ConfigError, match=word):
        train(settings().data, **given)


def test_recordings_that_are_not_there(settings: Settings, tmp_path: Path) -> None:
    given = {k: v for k, v in settings().to_mapping().items() if k != "data"}

    with pytest.raises((ConfigError, DataError), match="nowhere"):
        train(tmp_path / "nowhere", **given)

    assert not (Path(settings().output) / "ledger.zo").exists()


def test_a_run_with_frozen_weights_in_bfloat16_leaves_the_base_in_float32(settings: Settings) -> None:
    config = replace(settings(frozen_precision="bfloat16", eval_split="test"), num_server_rounds=1)

    run_here(config)

    exported = load_model(str(Path(config.output) / "model")).model
    base = load_model(config.model).model
    ledger = _ledger(config)
    assert replay(restore_state(base, ledger.header), ledger) == ledger.records[-1].checksum
    assert fingerprint(exported) == fingerprint(base)


def test_a_run_that_fails_while_it_loads_leaves_no_folder(
    settings: Settings, tiny_whisper: Path, tmp_path: Path
) -> None:
    damaged = shutil.copytree(tiny_whisper, tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"no weights")
    config = settings(model=str(damaged), output=str(tmp_path / "results" / "run"))
    with pytest.raises(ModelNotFound):
        run_here(config)
    assert not (tmp_path / "results" / "run").exists()


def test_an_attribute_error_of_the_loading_keeps_its_cause(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(config: RunConfig) -> None:
        raise AttributeError("'list' object has no attribute 'get'")

    monkeypatch.setattr(one_process, "warm_engine", broken)

    with pytest.raises(AttributeError, match="'list' object has no attribute 'get'"):
        OneProcess(settings()).model_of(settings())
