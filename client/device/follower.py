"""A device's copy of a run's weights, which follows the ledger round by round and undoes rounds exactly.

The weights are always a global state of the ledger, never half-applied.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from client.device.snapshot_parts import SnapshotParts
from zo_common.config.run import RunConfig
from zo_common.errors import ZOError
from zo_common.ledger.record import Record, all_updates
from zo_common.ledger.replay import apply_all
from zo_common.ledger.snapshot import SnapshotPart, apply_snapshot, largest_snapshot
from zo_common.replica import Replica
from zo_common.wire.plan import Plan, Status


class Follower(Replica):
    """A replica with a list of the rounds that its weights contain.

    Attributes:
        applied: the ledger's rounds after `start_round`.
        start_round, start_checksum: of the snapshot that the device started from; 0 where that was the base model.
        snapshot: its bytes, until they are on disk.

    Raises:
        OperatorError: as `Replica`.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self._load()

    def _load(self) -> None:
        self._loaded = False
        self.applied: list[Record] = []
        self.start_round, self.start_checksum = 0, 0
        self.snapshot: bytes | None = None
        self._from: bytes | None = None  # the same, for as long as the weights hold it
        self._parts = SnapshotParts()
        self._load_base()
        self._prepare()
        self._loaded = True

    def _prepare(self) -> None:
        """Build what depends on a model that was just loaded; nothing here."""

    def _let_go(self) -> None:
        """Drop the model and what was built from it."""
        del self.model, self.state, self.speech

    def rebuild(self) -> None:
        """Forget all rounds and read the base model from disk again, after dropping the old one.

        Raises:
            ModelNotFound, UnsupportedModel: the model cannot be read any more; the next use tries again.
        """
        if self._loaded:
            self._let_go()
        self._load()

    @contextmanager
    def _base_weights(self) -> Iterator[None]:
        """Set the weights to the base model's in the context, so that results do not depend on the present round."""
        applied = all_updates(self.applied)
        apply_all(self.state, applied, sign=-1)
        try:
            with self._without_snapshot():
                yield
        finally:
            apply_all(self.state, applied)

    @contextmanager
    def _without_snapshot(self) -> Iterator[None]:
        if self._from is None:
            yield
            return
        apply_snapshot(self.state, self._from, sign=-1)
        try:
            yield
        finally:
            apply_snapshot(self.state, self._from)

    @property
    def have_round(self) -> int:
        """The last ledger round whose state the weights are."""
        return self.start_round + len(self.applied)

    def describe(self) -> dict[str, Any]:
        """Return the description with which a server without the model opens a ledger."""
        return {
            "fingerprint": self.fingerprint,
            "base_checksum": self.base_checksum,
            "tensors": [[t.name, list(t.shape), t.grid_exponent, t.scale_exponent] for t in self.tensors],
        }

    def rewind(self, server_round: int) -> None:
        """Return to the state of an earlier round by exact negated replay; before a snapshot's round, to the base."""
        if server_round < self.start_round:
            self.rebuild()
            return
        remaining = server_round - self.start_round
        apply_all(self.state, all_updates(self.applied[remaining:]), sign=-1)
        del self.applied[remaining:]

    def sync(self, plan: Plan) -> Status:
        """Bring the weights to the state before `plan.server_round`.

        1. Return to the last round that the plan's records agree with.
        2. Apply the records that are missing.
        3. If the state is not the server's, return to the base: another history was applied, or memory is damaged.
        4. From the base apply all records, if all are available.

        The server's state is identified by the plan's checksum; if that is 0, by the last record's.

        Returns:
            OK; BEHIND if records are missing (the caller answers with `have_round`); CHECKSUM if all records were
            replayed from the base and the state is still not the server's.
        """
        if not self._loaded:
            self._load()
        target = plan.server_round - 1
        checksum = plan.checksum or (plan.records[-1].checksum if plan.records else 0)
        agreed = self._agreed(plan)
        if self.have_round > agreed:
            self.rewind(agreed)
        fresh = [r for r in plan.records if r.server_round > self.have_round]
        if target > self.have_round:
            if not fresh or fresh[0].server_round != self.have_round + 1 or fresh[-1].server_round != target:
                return Status.BEHIND
            apply_all(self.state, all_updates(fresh))
            self.applied += fresh
        if self._is(checksum):
            return Status.OK
        self._back_to_base()
        if len(plan.records) != target:
            return Status.BEHIND
        apply_all(self.state, all_updates(plan.records))
        self.applied = list(plan.records)
        if self._is(checksum):
            return Status.OK
        self._back_to_base()
        return Status.CHECKSUM

    def _agreed(self, plan: Plan) -> int:
        """Return the last round before the plan's up to which its records agree with the applied ones."""
        for record in plan.records:
            at = record.server_round - self.start_round
            if at > len(self.applied):
                break
            if at > 0:
                same = record == self.applied[at - 1]
            else:  # of a snapshot only the last round's checksum is known; the plan's own is compared later
                same = at < 0 or plan.checksum != 0 or record.checksum == self.start_checksum
            if not same:
                return record.server_round - 1
        return min(self.have_round, plan.server_round - 1)

    @property
    def known_checksum(self) -> int:
        """The checksum of `have_round` by the records or snapshot received; 0 if they have none."""
        return self.applied[-1].checksum if self.applied else self.start_checksum or self.base_checksum

    def _is(self, checksum: int) -> bool:
        return not checksum or self.state.checksum() == checksum

    def _back_to_base(self) -> None:
        """Return to the base model, known by its checksum; read it from disk if negated replay does not reach it."""
        try:
            self.rewind(0)
            if self.state.checksum() == self.base_checksum:
                return
        except ZOError:  # damaged weights may leave the lattice
            pass
        self.rebuild()

    def take_part(self, part: SnapshotPart) -> Status:
        """Collect a snapshot's parts; after the last one the weights are the state after its round.

        Returns:
            OK; BEHIND if parts before this one are missing (send the first again); CHECKSUM if the snapshot is for
            another base model, or does not lead to its checksum from the base model (whose weights the device then
            has).

        Raises:
            CodecError, LatticeOverflow: the snapshot is malformed; the weights are the base model's.
        """
        if not self._loaded:
            self._load()
        if part.base_id != self.base_id:
            return Status.CHECKSUM
        if self.have_round == part.server_round and self.state.checksum() == part.checksum:
            return Status.OK
        if not self._parts.add(part, largest_snapshot(self.state)):
            return Status.BEHIND
        if not self._parts.complete:
            return Status.OK
        data, self._parts = self._parts.data, SnapshotParts()
        self._back_to_base()
        return self.start_from(data, part.server_round, part.checksum)

    def start_from(self, snapshot: bytes, server_round: int, checksum: int) -> Status:
        """Move from the base to the state after `server_round`; return OK, or CHECKSUM with the base loaded again."""
        apply_snapshot(self.state, snapshot)
        if self.state.checksum() != checksum:
            self.rebuild()
            return Status.CHECKSUM
        self.start_round, self.start_checksum = server_round, checksum
        self.snapshot = self._from = snapshot
        return Status.OK
