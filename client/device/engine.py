"""The engine of a device: model, lattice state and applied ledger rounds, kept warm between messages.

sync → K local steps → undo → reply. Between messages the weights are always a global state of the ledger, never
half-applied and never locally trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from client.device.loss_choice import LossChoices
from client.device.private_steps import private_steps, seen_reply
from client.device.snapshot_parts import SnapshotParts
from zo_common.config.run import RunConfig
from zo_common.directions.seeds import fold_in
from zo_common.errors import LatticeOverflow, NonFiniteLoss, ZOError
from zo_common.estimator.local_steps import LocalResult, run_local_steps
from zo_common.estimator.step import LossFn, clip_factors
from zo_common.lattice.fingerprint import fingerprint
from zo_common.lattice.state import LatticeState
from zo_common.ledger.ledger import describe_tensors
from zo_common.ledger.record import Record, all_updates
from zo_common.ledger.replay import apply_all
from zo_common.ledger.snapshot import SnapshotPart, apply_snapshot, largest_snapshot
from zo_common.models.compute import choose_device
from zo_common.models.load import load_model
from zo_common.models.loss_check import LossChoice
from zo_common.speech.evaluation import evaluate, utterance_losses
from zo_common.speech.loss_settings import LossSettings, unchecked
from zo_common.speech.metrics import Scores
from zo_common.speech.model_kinds import trainable
from zo_common.speech.recordings import Recordings
from zo_common.speech.speech_model import LossOf, SpeechModel
from zo_common.wire.evaluation import EvaluationReply
from zo_common.wire.plan import Plan, Reply, Status

_BATCH_STREAM = 1 << 40  # far from any step number: batch sampling never meets a direction seed


class Cancelled(ZOError):
    """Work was stopped between two steps; the weights are a global state."""


class Engine:
    """Holds one model for every (virtual) device of this process; data sets come from outside.

    Args:
        config: which model and tensors to train, and how forward passes are computed.

    Raises:
        ModelNotFound, UnsupportedModel, PatternError, EpsilonTooSmall, ConfigError: at start, before anything is
            trained.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self._load()

    def _load(self) -> None:
        self._loaded = False
        self.applied: list[Record] = []
        self.start_round, self.start_checksum = 0, 0
        self.snapshot: bytes | None = None  # what the device started from, until someone has put it on disk
        self._from: bytes | None = None  # the same, for as long as the weights hold it
        self._parts = SnapshotParts()
        loaded = load_model(self.config.model, language=self.config.language)
        self.processor = loaded.processor
        self.speech = trainable(loaded, self.config)
        self.model = loaded.model.to(choose_device(self.config.device))
        self.device = next(self.model.parameters()).device
        self.fingerprint = fingerprint(self.model)
        self.state = LatticeState(self.model, self.config.trained_tensors, self.config.scale)
        if self.config.epsilon != "auto":
            self.state.epsilon_units(self.config.epsilon)
        self.base_checksum = self.state.checksum()
        self._choices = LossChoices(
            self.config, self.speech, self.state, self.device, self.fingerprint, self._base_weights
        )
        self._use(unchecked(self.config))
        if self.config.torch_compile:
            self.speech.compile()
        self._loaded = True

    def rebuild(self) -> None:
        """Forget all rounds and read the base model from disk again, the old one being let go first.

        Raises:
            ModelNotFound, UnsupportedModel: it is not there any more; the next use tries again.
        """
        if self._loaded:
            del self.model, self.state, self.speech, self._losses, self._choices
        self._load()

    def _use(self, choice: LossChoice) -> None:
        self.choice, self.precision = choice, choice.precision  # of the data set that was trained on last
        settings = LossSettings.of(self.config, choice.tail_tokens)
        self._losses: LossOf = self.speech.losses(self.state.exponents, settings, choice.precision)

    @contextmanager
    def _base_weights(self) -> Iterator[None]:
        """The base model's weights, and then the present ones: what is seen there is the same on every way to them."""
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

    @property
    def base_id(self) -> int:
        """First 8 bytes of the base model's fingerprint, as plans carry it."""
        return int(self.fingerprint[:16], 16)

    def describe(self) -> dict[str, Any]:
        """What a server without the model needs to open a ledger."""
        return {
            "fingerprint": self.fingerprint,
            "base_checksum": self.base_checksum,
            "tensors": [
                [t.name, list(t.shape), t.grid_exponent, t.scale_exponent] for t in describe_tensors(self.state)
            ],
        }

    def rewind(self, server_round: int) -> None:
        """Go back to the state of an earlier round by exact negated replay; before a snapshot's round, to the base."""
        if server_round < self.start_round:
            self.rebuild()
            return
        kept = server_round - self.start_round
        apply_all(self.state, all_updates(self.applied[kept:]), sign=-1)
        del self.applied[kept:]

    def sync(self, plan: Plan) -> Status:
        """Bring the weights to the state before `plan.server_round`.

        1. Go back to the last round that the plan's records agree with.
        2. Apply the records that are missing.
        3. Where the state is not the server's, go back to the base: another history was applied, or memory is damaged.
        4. From the base apply all records, if all are at hand.

        The server's state is known by the plan's checksum, where that is 0 by the last record's.

        Returns:
            OK; BEHIND if records are missing (the caller answers with `have_round`); CHECKSUM if all records were
            replayed from the base and the state still is not the server's.
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
        """The last round before the plan's up to which no record of it contradicts what was applied."""
        for record in plan.records:
            at = record.server_round - self.start_round
            if at > len(self.applied):
                break
            if at > 0:
                same = record == self.applied[at - 1]
            else:  # of a snapshot only the last round's checksum is known; the plan's own is looked at later
                same = at < 0 or plan.checksum != 0 or record.checksum == self.start_checksum
            if not same:
                return record.server_round - 1
        return min(self.have_round, plan.server_round - 1)

    @property
    def known_checksum(self) -> int:
        """What the checksum of `have_round` is by what the device was told; 0 if it was not told."""
        return self.applied[-1].checksum if self.applied else self.start_checksum or self.base_checksum

    def _is(self, checksum: int) -> bool:
        return not checksum or self.state.checksum() == checksum

    def _back_to_base(self) -> None:
        """The base model, known by its checksum: read from disk where negated replay does not lead to it."""
        try:
            self.rewind(0)
            if self.state.checksum() == self.base_checksum:
                return
        except ZOError:  # damaged weights may leave the lattice
            pass
        self.rebuild()

    def take_part(self, part: SnapshotPart) -> Status:
        """Collect a snapshot's parts; with the last one the weights are the state after its round.

        Returns:
            OK; BEHIND if parts before this one are missing (send the first again); CHECKSUM if the snapshot is for
            another base model, or does not lead to its checksum from the base model (which the device then holds).

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
        """From the base, take the state after `server_round`; OK, or CHECKSUM and the base model again."""
        apply_snapshot(self.state, snapshot)
        if self.state.checksum() != checksum:
            self.rebuild()
            return Status.CHECKSUM
        self.start_round, self.start_checksum = server_round, checksum
        self.snapshot = self._from = snapshot
        return Status.OK

    def train(
        self,
        plan: Plan,
        data: Recordings,
        on_step: Callable[[int, float], None] | None = None,
        on_synced: Callable[[], None] = lambda: None,
    ) -> Reply:
        """Answer one plan; on any failure the reply says so and the weights are a global state again.

        Args:
            on_step: called with (step, loss) after each local step; may raise `Cancelled`.
            on_synced: called when the weights are a global state, before local steps move them.

        Raises:
            Cancelled: by `on_step`.
        """
        return seen_reply(plan, self._train(plan, data, on_step, on_synced), len(data))

    def _train(
        self,
        plan: Plan,
        data: Recordings,
        on_step: Callable[[int, float], None] | None,
        on_synced: Callable[[], None],
    ) -> Reply:
        base = Reply(Status.OK, plan.server_round, self.have_round, plan.client_id, plan.seed, 0)
        if plan.base_id != self.base_id:
            return replace(base, status=Status.CHECKSUM, message=self._other_base(plan))
        word = ""
        try:
            status = self.sync(plan)
            base = replace(base, status=status, have_round=self.have_round, checksum=self.state.checksum())
            on_synced()
            if status is not Status.OK:
                return base
            choice, new = self._choices.of(plan, data)
            said = [choice.sentence] if new else []
            said += data.notes if plan.server_round == 1 and plan.privacy is None else ()
            word = "" if self.config.secure_aggregation else "; ".join(filter(None, said))
            if choice != self.choice:
                self._use(choice)
            result = self._local_steps(plan, data, on_step)
        except Cancelled:
            raise
        except NonFiniteLoss as error:
            return replace(base, status=Status.NON_FINITE, message=str(error))
        except LatticeOverflow as error:
            self.rebuild()
            return replace(base, status=Status.ERROR, have_round=0, message=str(error))
        except ZOError as error:
            return replace(base, status=Status.ERROR, message=str(error))
        return replace(
            base,
            num_examples=len(data),
            loss=result.loss,
            projected_grads=result.projected_grads,
            message=word,
            curvature=result.curvature,
        )

    def _local_steps(self, plan: Plan, data: Recordings, on_step: Callable[[int, float], None] | None) -> LocalResult:
        private = private_steps(plan, len(data))
        estimator = replace(plan.estimator, epsilon=plan.estimator.epsilon or self.choice.epsilon)

        def loss_of_step(step: int) -> LossFn:
            if private is not None:
                return private.loss(data.batch, self.loss_fn)
            return self.loss_fn(self._draw(plan, data, step))

        return run_local_steps(
            self.state,
            loss_of_step,
            plan.seed,
            plan.local_steps,
            estimator,
            plan.learning_rate,
            on_step,
            release=private.release if private is not None else None,
            weigh=partial(clip_factors, multiple=self.config.clip_utterances),
            curvature=plan.curvature,
        )

    def evaluate(
        self,
        plan: Plan,
        data: Recordings,
        on_progress: Callable[[int, int], None] | None = None,
        on_synced: Callable[[], None] = lambda: None,
        decode: bool = True,
    ) -> EvaluationReply:
        """Sync, then decode held-out speech; the answer holds counts only. `on_progress` may raise `Cancelled`.

        Without `decode` it holds the loss sum and the number of utterances alone.
        """
        if plan.base_id != self.base_id:
            word = self._other_base(plan)
            return EvaluationReply(Status.CHECKSUM, plan.server_round, self.have_round, plan.client_id, 0, message=word)
        status = self.sync(plan)
        on_synced()
        base = EvaluationReply(status, plan.server_round, self.have_round, plan.client_id, self.state.checksum())
        if status is not Status.OK:
            return base
        if not decode:
            return loss_reply(base, self.speech, data, on_progress)
        result = evaluate(self.speech, data, language=self.config.language, on_progress=on_progress)
        return replace(base, loss_sum=result.loss * len(data), scores=result.scores)

    def catch_up(self, plan: Plan) -> Reply:
        """Sync without training; the reply tells the round and the checksum reached."""
        base = Reply(Status.OK, plan.server_round, self.have_round, plan.client_id, plan.seed, 0)
        if plan.base_id != self.base_id:
            return replace(base, status=Status.CHECKSUM, message=self._other_base(plan))
        status = self.sync(plan)
        return replace(base, status=status, have_round=self.have_round, checksum=self.state.checksum())

    def _other_base(self, plan: Plan) -> str:
        return f"this device holds base model {self.fingerprint[:16]}, the plan is for {plan.base_id:016x}"

    def _draw(self, plan: Plan, data: Recordings, step: int) -> Any:
        """A batch without replacement; which utterances does not matter to a replay."""
        generator = np.random.default_rng(fold_in(plan.seed, _BATCH_STREAM, plan.client_id, step))
        return data.batch(data.draw(plan.batch_size, generator))

    def loss_fn(self, batch: Any) -> LossFn:
        """The per-example loss of a batch under the current weights; one object serves one step."""
        return self._losses(batch.to(self.device))


def loss_reply(
    base: EvaluationReply, speech: SpeechModel, data: Recordings, on_progress: Callable[[int, int], None] | None = None
) -> EvaluationReply:
    """`base` with the sum of the utterances' losses and how many they are; NON_FINITE where it is no finite number."""
    total = float(utterance_losses(speech, data, on_progress=on_progress).sum())
    if not math.isfinite(total):
        return replace(base, status=Status.NON_FINITE, message="the held-out loss is not finite")
    return replace(base, loss_sum=total, scores=Scores(utterances=len(data)))
