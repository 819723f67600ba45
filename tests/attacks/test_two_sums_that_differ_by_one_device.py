"""Attack: the directions of one round are summed twice, over sets that differ by one device, whose part is the rest."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from secure_cohort import node_key
from secure_worker import Sum, Victim, _bare
from toy_fleet import TOY, Utterances, toy_grids

from client.app import make_client_app
from server.rounds.federation import Federation
from zo_common.config.run import RunConfig
from zo_common.directions.seeds import shared_seed
from zo_common.errors import SecureAggregationError
from zo_common.secure_sum.messages import Sharers
from zo_common.wire.plan import Status, decode_reply

AGAIN = "were masked in another sum"
BARE = "were masked in a secure sum and are not answered in the clear"


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("run_id", [b"a run of a test.", b"another run's id"])
def test_a_second_sum_over_one_device_less(victim: Victim, run_id: bytes, restarted: bool) -> None:
    """Whatever the run's id says, and also after a restart, with which the memory of the last round is gone."""
    Sum(victim, range(1, 6)).run()
    if restarted:
        victim.restart()
    with pytest.raises(SecureAggregationError, match=AGAIN):
        Sum(victim, range(1, 5), run_id=run_id).run()


def test_the_same_set_in_another_session(victim: Victim) -> None:
    """Other devices may drop out of it: the same message again, or none."""
    Sum(victim, range(1, 6)).run()
    with pytest.raises(SecureAggregationError, match=AGAIN):
        Sum(victim, range(1, 6), run_id=b"another run's id").run()


def test_another_plan_along_the_same_directions(victim: Victim) -> None:
    Sum(victim, range(1, 6)).run()
    for changes in ({"batch_size": 9}, {"learning_rate": 0.25}):
        with pytest.raises(SecureAggregationError, match=AGAIN):
            Sum(victim, range(1, 5), victim.plan(**changes), run_id=b"another run's id").run()


def test_another_list_of_devices_once_the_device_has_caught_up(victim: Victim) -> None:
    """A device that is behind is asked twice in one sum; the second time for the same devices."""
    attacked = Sum(victim, range(1, 6), victim.plan(2))
    sharers = attacked.share()
    assert decode_reply(attacked.mask(sharers)).status is Status.BEHIND
    fewer = replace(Sharers.decode(sharers[0]), bitmap=attacked.server._graph.bitmap(range(5)))
    reply = decode_reply(victim.train(attacked.plan, fewer.encode()))
    assert reply.status is Status.ERROR and AGAIN in reply.message


def test_a_loss_has_no_directions_and_is_in_no_sum(victim: Victim) -> None:
    """A round that is begun again has other directions and, with a batch of all a device has, the same loss."""
    totals = []
    for attempt, others in enumerate((range(1, 6), range(1, 5))):
        plan = victim.plan(seed=shared_seed(0, 1, attempt), batch_size=65535)
        totals.append(Sum(victim, others, plan).run())
        assert victim.engine._measured(decode_reply(_bare(plan)), plan, Utterances(4)).loss > 0
    assert all(total[:-1].all() and total[-1] == 0 for total in totals)


class TestFederation:
    """A server that crashed once devices had masked, and resumes: it asks along other directions."""

    @pytest.fixture
    def config(self, tmp_path: Path) -> RunConfig:
        secure: dict[str, Any] = {"directions": "shared", "secure_aggregation": True, "round_timeout": 300.0}
        return RunConfig(**{**TOY, **secure, "num_server_rounds": 1, "output": str(tmp_path / "run")})

    def grid(self, config: RunConfig, folder: Path, grids: Callable[[RunConfig], Any]) -> Any:
        """Of devices with node keys, whose memory of a Flower run is gone."""
        grid = grids(config)
        for client in range(3):
            path = folder / f"{client}.key"
            path.write_bytes(node_key(client)[0])
            grid[client].context.node_config["node-key"] = str(path)
        return grid

    def test_a_resumed_round_counts_its_attempt_into_the_seed(
        self, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, observed: Any
    ) -> None:
        grids, asked = toy_grids(monkeypatch), set()
        first = Federation(config, self.grid(config, tmp_path, grids), observed.events)
        real = first._close_round

        def crash(server_round: int, inbox: Any) -> Any:
            asked.update(plan.seed for plan in inbox._plans.values())
            raise KeyboardInterrupt

        monkeypatch.setattr(first, "_close_round", crash)
        with closing(first), pytest.raises(KeyboardInterrupt):
            first.run()
        assert real and json.loads((tmp_path / "run" / "attempts.json").read_text()) == [1, 0]

        config = RunConfig.from_mapping(config.to_mapping() | {"resume": True})
        with closing(Federation(config, self.grid(config, tmp_path, grids), observed.events)) as second:
            second.run()
            (record,) = second.ledger.ledger.records
        assert [r.answered for r in observed.reports] == [3]
        assert len(record.contributions) == 1 and record.contributions[0].seed not in asked

    def test_a_server_that_does_not_count_gets_nothing(
        self, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, observed: Any
    ) -> None:
        grids = toy_grids(monkeypatch)
        for output in ("run", "another"):
            config = RunConfig.from_mapping(config.to_mapping() | {"output": str(tmp_path / output)})
            with closing(Federation(config, self.grid(config, tmp_path, grids), observed.events)) as federation:
                federation.run()
        assert [r.answered for r in observed.reports] == [3, 0]
        assert AGAIN in observed.text

    @pytest.mark.parametrize(("changes", "word"), [({}, AGAIN), ({"secure_aggregation": False}, BARE)])
    def test_a_device_without_key_or_worker_remembers_for_one_flower_run(
        self, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, observed: Any, changes: Any, word: str
    ) -> None:
        grid = toy_grids(monkeypatch)(config)
        with closing(Federation(config, grid, observed.events)) as federation:
            federation.run()
        config = replace(config, output=str(tmp_path / "another"), **changes)
        grid.app = make_client_app(config)
        with closing(Federation(config, grid, observed.events)) as federation:
            federation.run()
        assert [r.answered for r in observed.reports] == [3, 0]
        assert word in observed.text
