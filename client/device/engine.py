"""The engine of a device: a replica that trains and evaluates, kept warm between messages.

sync → K local steps → undo → reply. Between messages the weights are always a global state of the ledger, never
half-applied and never locally trained.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from client.device.follower import Follower
from client.device.loss_choice import LossChoices
from client.device.private_steps import private_steps, seen_reply
from client.error_text import error_text
from zo_common.directions.seeds import fold_in
from zo_common.errors import DeviceError, LatticeOverflow, NonFiniteLoss, ZOError
from zo_common.estimator.local_steps import LocalResult, run_local_steps
from zo_common.estimator.step import LossFn, clip_factors
from zo_common.models.compute import fits_memory, resolve_precision
from zo_common.models.loss_check import LossChoice
from zo_common.speech.evaluation import evaluate, utterance_losses
from zo_common.speech.loss_settings import LossSettings, unchecked
from zo_common.speech.metrics import Scores
from zo_common.speech.recordings import Recordings
from zo_common.speech.speech_model import LossOf, SpeechModel
from zo_common.wire.evaluation import EvaluationReply
from zo_common.wire.plan import Plan, Reply, Status

logger = logging.getLogger(__name__)
_BATCH_STREAM = 1 << 40  # far from any step number: batch sampling never meets a direction seed


class Cancelled(DeviceError):
    """Work was stopped between two steps; the weights are a global state."""


class Engine(Follower):
    """One model for every (virtual) device of this process; data sets are passed in.

    Args:
        config: which model and tensors to train, and how forward passes are computed.

    Raises:
        OperatorError: the model or the settings cannot be used; raised before anything is trained.
    """

    def _prepare(self) -> None:
        self._loaded_in = self.held_in
        self._choices = LossChoices(
            self.config, self.speech, self.state, self.device, self.fingerprint, self._as_loaded, self.held_in
        )
        self._use(replace(unchecked(self.config), frozen=self.held_in))
        if self.config.torch_compile:
            self.speech.compile()

    def _let_go(self) -> None:
        super()._let_go()
        del self._losses, self._choices

    def _frozen_precision(self) -> str:
        """As `Replica._frozen_precision`; auto loads what the loss check then tries."""
        config = self.config
        if config.frozen_precision == "auto" and config.loss_check and config.privacy == "none":
            return resolve_precision("auto", self._place())
        return super()._frozen_precision()

    @contextmanager
    def _as_loaded(self) -> Iterator[None]:
        """Yield the base's weights, frozen ones in the precision that the loss check is to judge."""
        self.hold_in(self._loaded_in)
        with self._base_weights():
            yield

    def _use(self, choice: LossChoice) -> None:
        self.hold_in(choice.frozen)
        self.choice, self.precision = choice, choice.precision  # of the data set that was trained on last
        settings = LossSettings.of(self.config, choice.tail_tokens)
        self._losses: LossOf = self.speech.losses(self.state.exponents, settings, choice.precision)

    def train(
        self,
        plan: Plan,
        data: Recordings,
        on_step: Callable[[int, float], None] | None = None,
        on_synced: Callable[[], None] = lambda: None,
        before: Callable[[], None] = lambda: None,
        describe: Callable[[Exception], str] = error_text,
    ) -> Reply:
        """Answer one plan; any failure becomes a reply with its message, and the weights are a global state again.

        Under a privacy guarantee, a training that fails for any reason is answered with noise.

        Args:
            on_step: called with (step, loss) after each local step; may raise `Cancelled`.
            on_synced: called when the weights are a global state, before local steps move them.
            before: called once the weights are the plan's, before recordings are used; an exception refuses the plan.
            describe: what a failed reply says of an error.

        Raises:
            Cancelled: by `on_step`.
        """
        return seen_reply(plan, self._train(plan, data, on_step, on_synced, before, describe), len(data))

    def _train(
        self,
        plan: Plan,
        data: Recordings,
        on_step: Callable[[int, float], None] | None,
        on_synced: Callable[[], None],
        before: Callable[[], None],
        describe: Callable[[Exception], str],
    ) -> Reply:
        base = Reply(Status.OK, plan.server_round, self.have_round, plan.client_id, plan.seed, 0)
        if plan.base_id != self.base_id:
            return replace(base, status=Status.CHECKSUM, message=self._other_base(plan))
        try:
            status = self.sync(plan)
            base = replace(base, status=status, have_round=self.have_round, checksum=self.state.checksum())
            on_synced()
            if status is not Status.OK:
                return base
            private_steps(plan, len(data))
            before()
        except ZOError as error:  # nothing was measured: the reply has no checksum
            if isinstance(error, LatticeOverflow):
                self.rebuild()
            return replace(base, status=Status.ERROR, have_round=self.have_round, checksum=0, message=describe(error))
        try:
            return self._measured(base, plan, data, on_step)
        except Cancelled:
            raise
        except Exception as error:  # under a guarantee any failure is answered with noise, also one nobody foresaw
            if plan.privacy is None and not isinstance(error, ZOError):
                raise
            return self._failed(base, plan, error, describe)

    def _measured(
        self, base: Reply, plan: Plan, data: Recordings, on_step: Callable[[int, float], None] | None
    ) -> Reply:
        choice, new = self._choices.of(plan, data)
        messages = [choice.sentence] if new else []
        messages += data.notes if plan.server_round == 1 and plan.privacy is None else ()
        text = "" if self.config.secure_aggregation else "; ".join(filter(None, messages))
        if choice != self.choice or choice.frozen != self.held_in:
            self._use(choice)
        with fits_memory(f"a step of batch-size {plan.batch_size}", self.device, "a smaller batch-size"):
            result = self._local_steps(plan, data, on_step)
        return replace(
            base,
            num_examples=len(data),
            loss=result.loss,
            projected_grads=result.projected_grads,
            message=text,
            curvature=result.curvature,
        )

    def _failed(self, base: Reply, plan: Plan, error: Exception, describe: Callable[[Exception], str]) -> Reply:
        """Return the reply to a plan whose training failed; the weights are a global state again."""
        status = Status.NON_FINITE if isinstance(error, NonFiniteLoss) else Status.ERROR
        if plan.privacy is not None:
            logger.error(f"round {plan.server_round}: training failed, the answer is noise", exc_info=error)
        try:
            if isinstance(error, LatticeOverflow) or self.state.checksum() != base.checksum:
                self.rebuild()
        except Exception:  # as above: the answer is noise, and the owner's log has the reason
            if plan.privacy is None:
                raise
            logger.exception("the checksum of the weights cannot be computed: the next work starts from the base model")
        return replace(base, status=status, have_round=self.have_round, message=describe(error))

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
        """Sync, then decode held-out speech; the answer has counts only. `on_progress` may raise `Cancelled`.

        Without `decode` it has only the loss sum and the number of utterances.
        """
        if plan.base_id != self.base_id:
            text = self._other_base(plan)
            return EvaluationReply(Status.CHECKSUM, plan.server_round, self.have_round, plan.client_id, 0, message=text)
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
        """Sync without training; the reply has the round and the checksum reached."""
        base = Reply(Status.OK, plan.server_round, self.have_round, plan.client_id, plan.seed, 0)
        if plan.base_id != self.base_id:
            return replace(base, status=Status.CHECKSUM, message=self._other_base(plan))
        status = self.sync(plan)
        return replace(base, status=status, have_round=self.have_round, checksum=self.state.checksum())

    def _other_base(self, plan: Plan) -> str:
        return f"this device holds base model {self.fingerprint[:16]}, the plan is for {plan.base_id:016x}"

    def _draw(self, plan: Plan, data: Recordings, step: int) -> Any:
        """Draw a batch without replacement; a replay does not depend on the utterances."""
        generator = np.random.default_rng(fold_in(plan.seed, _BATCH_STREAM, plan.client_id, step))
        return data.batch(data.draw(plan.batch_size, generator))

    def loss_fn(self, batch: Any) -> LossFn:
        """Return the per-example loss of a batch under the current weights, for one step."""
        return self._losses(batch.to(self.device))


def loss_reply(
    base: EvaluationReply, speech: SpeechModel, data: Recordings, on_progress: Callable[[int, int], None] | None = None
) -> EvaluationReply:
    """Return `base` with the sum of the utterances' losses and their number; NON_FINITE if the sum is not finite."""
    total = float(utterance_losses(speech, data, on_progress=on_progress).sum())
    if not math.isfinite(total):
        return replace(base, status=Status.NON_FINITE, message="the held-out loss is not finite")
    return replace(base, loss_sum=total, scores=Scores(utterances=len(data)))
