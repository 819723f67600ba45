"""How an engine comes back: from damaged memory, from a snapshot in parts, and from work that was stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from references import split_snapshot
from toy_engine import ToyEngine, history, toy_engine

from client.device.engine import Cancelled, Engine
from zo_common.errors import CodecError, ModelNotFound
from zo_common.estimator.settings import EstimatorConfig
from zo_common.ledger.record import Record
from zo_common.ledger.snapshot import SnapshotPart, encode_snapshot
from zo_common.speech.whisper import SpeechDataset
from zo_common.wire.plan import Plan, Status

ROUNDS = 6


@pytest.fixture
def engine() -> ToyEngine:
    return toy_engine()


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return history(ROUNDS)


def _plan(engine: Engine, server_round: int, records: list[Record], checksum: int = 0) -> Plan:
    checksum = checksum or (records[-1].checksum if records else 0)
    estimator = EstimatorConfig("two-sided", 2, 1e-3)
    return Plan(server_round, 42, 3, engine.base_id, checksum, 4, 2, 1e-4, estimator, tuple(records))


def _damage(engine: ToyEngine) -> None:
    """A weight that no round led to, as a bad memory cell leaves it."""
    tensor = engine.state.tensors[0]
    tensor.weight.view(-1)[5] += 2.0**tensor.grid_exponent * 1000


def _parts(records: list[Record], server_round: int, limit: int = 600) -> list[SnapshotPart]:
    target = toy_engine()
    target.pretend(records[:server_round])
    data = encode_snapshot(toy_engine().state, target.state)
    checksum = target.state.checksum()
    return split_snapshot(
        data, base_id=target.base_id, client_id=3, server_round=server_round, checksum=checksum, limit=limit
    )


class TestDamage:
    def test_damaged_memory_is_read_from_disk_and_asks_for_all_rounds(
        self, engine: ToyEngine, records: list[Record]
    ) -> None:
        engine.pretend(records[:4])
        _damage(engine)

        assert engine.sync(_plan(engine, 6, records[4:5])) is Status.BEHIND
        assert (engine.have_round, engine.loads) == (0, 2)
        assert engine.sync(_plan(engine, 6, records[:5])) is Status.OK
        assert engine.state.checksum() == records[4].checksum

    def test_with_all_rounds_at_hand_it_is_back_at_once(self, engine: ToyEngine, records: list[Record]) -> None:
        engine.pretend(records[:4])
        _damage(engine)

        assert engine.sync(_plan(engine, 5, records[:4])) is Status.OK
        assert engine.state.checksum() == records[3].checksum

    def test_a_damaged_base_before_the_first_round(self, engine: ToyEngine) -> None:
        _damage(engine)

        assert engine.sync(_plan(engine, 1, [], engine.base_checksum)) is Status.OK
        assert engine.loads == 2

    def test_another_history_alone_does_not_read_the_disk(self, engine: ToyEngine, records: list[Record]) -> None:
        engine.pretend(history(3, 1))

        assert engine.sync(_plan(engine, 4, records[:3])) is Status.OK
        assert engine.loads == 1

    def test_a_fresh_base_with_all_rounds_that_is_still_off_is_a_checksum(
        self, engine: ToyEngine, records: list[Record]
    ) -> None:
        _damage(engine)

        assert engine.sync(_plan(engine, 4, records[:3], checksum=1)) is Status.CHECKSUM
        assert engine.state.checksum() == engine.base_checksum

    def test_a_model_that_is_gone_is_looked_for_again_at_the_next_use(
        self, engine: ToyEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:

            def gone(self: ToyEngine) -> None:
                self._loaded = False
                raise ModelNotFound("gone")

            patch.setattr(ToyEngine, "_load", gone)
            for _ in range(2):
                with pytest.raises(ModelNotFound):
                    engine.rebuild()

        assert engine.sync(_plan(engine, 1, [], engine.base_checksum)) is Status.OK


class TestServerWithoutModel:
    """Its plans carry no checksum: histories are told apart by their records."""

    @pytest.mark.parametrize("checksums", [True, False])
    def test_another_runs_rounds_replace_those_of_this_one(self, engine: ToyEngine, checksums: bool) -> None:
        engine.pretend(history(6, 1, checksums=checksums))
        theirs, reached = history(3, 2, checksums=checksums), history(3, 2)[-1].checksum

        assert engine.sync(replace(_plan(engine, 4, theirs), checksum=0)) is Status.OK

        assert (engine.applied, engine.state.checksum(), engine.loads) == (theirs, reached, 1)

    def test_only_the_rounds_that_differ_are_gone_back(self, engine: ToyEngine) -> None:
        ours = history(6, 1, checksums=False)
        engine.pretend(ours)
        fork = toy_engine()
        fork.pretend(ours[:4])
        theirs = ours[2:4] + history(2, 2, start=fork, checksums=False)

        assert engine.sync(replace(_plan(engine, 7, theirs), checksum=0)) is Status.OK

        fork.state.apply([u for r in theirs[2:] for u in r.updates()])
        assert engine.applied == ours[:2] + theirs
        assert engine.state.checksum() == fork.state.checksum()

    def test_the_last_records_own_checksum_is_looked_at(self, engine: ToyEngine, records: list[Record]) -> None:
        engine.pretend(history(3, 1, checksums=False))

        assert engine.sync(replace(_plan(engine, 5, records[3:4]), checksum=0)) is Status.BEHIND
        assert engine.have_round == 0
        assert engine.sync(replace(_plan(engine, 5, records[:4]), checksum=0)) is Status.OK
        assert engine.state.checksum() == records[3].checksum

    def test_rounds_before_a_snapshot_that_nothing_ties_to_it_lead_back_to_the_base(
        self, engine: ToyEngine, records: list[Record]
    ) -> None:
        (part,) = _parts(records, 4, 1 << 20)
        engine.take_part(part)
        theirs = history(5, 2, checksums=False)

        assert engine.sync(replace(_plan(engine, 6, theirs), checksum=0)) is Status.OK

        assert (engine.start_round, engine.applied) == (0, theirs)
        assert engine.state.checksum() == history(5, 2)[-1].checksum


class TestSnapshot:
    def test_all_parts_in_order_lead_to_the_round(self, engine: ToyEngine, records: list[Record]) -> None:
        engine.pretend(history(2, 1))
        parts = _parts(records, 5)
        assert len(parts) > 2

        for part in parts[:-1]:
            assert engine.take_part(part) is Status.OK
            assert engine.have_round == 2
        assert engine.take_part(parts[-1]) is Status.OK

        assert (engine.start_round, engine.have_round, engine.applied) == (5, 5, [])
        assert engine.state.checksum() == records[4].checksum
        assert engine.sync(_plan(engine, 7, records[5:6])) is Status.OK
        assert engine.have_round == 6

    def test_repeated_parts_change_nothing(self, engine: ToyEngine, records: list[Record]) -> None:
        for part in _parts(records, 5):
            for _ in range(2):
                assert engine.take_part(part) is Status.OK

        assert engine.state.checksum() == records[4].checksum
        assert engine.loads == 1

    def test_a_missing_part_is_behind_until_the_first_comes_again(
        self, engine: ToyEngine, records: list[Record]
    ) -> None:
        parts = _parts(records, 5)
        assert engine.take_part(parts[1]) is Status.BEHIND
        assert engine.take_part(parts[0]) is Status.OK
        assert engine.take_part(parts[2]) is Status.BEHIND
        other = _parts(records, 3)
        assert engine.take_part(other[0]) is Status.OK
        assert engine.take_part(parts[1]) is Status.BEHIND
        for part in parts:
            assert engine.take_part(part) is Status.OK
        assert engine.have_round == 5

    def test_more_bytes_than_a_snapshot_can_have_are_refused(self, engine: ToyEngine, records: list[Record]) -> None:
        first = _parts(records, 5)[0]
        endless = [SnapshotPart(first.base_id, 3, 5, 1, n, 1 << 20, bytes(1000)) for n in range(10)]

        found = [engine.take_part(part) for part in endless]

        assert found[0] is Status.OK and found[-1] is Status.BEHIND

    def test_a_wrong_checksum_is_the_base_again(self, engine: ToyEngine, records: list[Record]) -> None:
        engine.pretend(records[:2])
        (part,) = _parts(records, 5, 1 << 20)
        wrong = SnapshotPart(part.base_id, 3, 5, part.checksum ^ 1, 0, 1, part.data)

        assert engine.take_part(wrong) is Status.CHECKSUM
        assert (engine.have_round, engine.state.checksum()) == (0, engine.base_checksum)

    def test_damaged_bytes_leave_the_base(self, engine: ToyEngine, records: list[Record]) -> None:
        (part,) = _parts(records, 5, 1 << 20)
        with pytest.raises(CodecError):
            engine.take_part(SnapshotPart(part.base_id, 3, 5, part.checksum, 0, 1, part.data[:-3]))

        assert engine.state.checksum() == engine.base_checksum
        assert engine.take_part(part) is Status.OK

    def test_another_base_is_refused(self, engine: ToyEngine, records: list[Record]) -> None:
        (part,) = _parts(records, 5, 1 << 20)
        other = SnapshotPart(part.base_id ^ 1, 3, 5, part.checksum, 0, 1, part.data)
        assert engine.take_part(other) is Status.CHECKSUM

    def test_going_back_before_the_snapshot_reads_the_base(self, engine: ToyEngine, records: list[Record]) -> None:
        (part,) = _parts(records, 4, 1 << 20)
        engine.take_part(part)
        engine.sync(_plan(engine, 7, records[4:]))

        assert engine.sync(_plan(engine, 6, records[4:5])) is Status.OK  # after the snapshot: by replay
        assert (engine.have_round, engine.loads) == (5, 1)
        assert engine.sync(_plan(engine, 3, records[1:2])) is Status.BEHIND
        assert (engine.have_round, engine.start_round, engine.loads) == (0, 0, 2)
        assert engine.sync(_plan(engine, 3, records[:2])) is Status.OK

    def test_a_wrong_state_after_a_snapshot_is_replayed_from_the_base(
        self, engine: ToyEngine, records: list[Record]
    ) -> None:
        (part,) = _parts(history(4, 1), 4, 1 << 20)
        engine.take_part(part)

        assert engine.sync(_plan(engine, 6, records[4:5])) is Status.BEHIND
        assert engine.have_round == 0
        assert engine.sync(_plan(engine, 6, records[:5])) is Status.OK


class TestCancel:
    @pytest.fixture(scope="class")
    def whisper(self) -> dict[str, Engine]:
        return {}

    @pytest.mark.parametrize("at", [0, 2])
    def test_between_two_steps_every_bit_is_the_global_state_again(
        self,
        whisper: dict[str, Engine],
        engine_of: Callable[..., Engine],
        speech_of: Callable[[Engine], SpeechDataset],
        at: int,
    ) -> None:
        engine = whisper.setdefault("tiny", engine_of())
        before = {name: p.numpy().tobytes() for name, p in engine.model.named_parameters()}
        synced = []

        def on_step(step: int, loss: float) -> None:
            moved = engine.state.checksum() != engine.base_checksum
            assert moved
            if step == at:
                raise Cancelled("stop")

        with pytest.raises(Cancelled):
            plan = _plan(engine, 1, [], engine.base_checksum)
            engine.train(plan, speech_of(engine), on_step, lambda: synced.append(engine.state.checksum()))

        assert {name: p.numpy().tobytes() for name, p in engine.model.named_parameters()} == before
        assert synced == [engine.base_checksum]
