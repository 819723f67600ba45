"""Validation of every field of every reply: an invalid reply is refused and counted by reason; the round continues."""

from __future__ import annotations

from collections import Counter
from dataclasses import astuple

import numpy as np

from server.messaging.foreign_text import plain
from zo_common.aggregation.mean import ClientScalars
from zo_common.errors import CodecError
from zo_common.estimator.curvature import Curvature, RelativeCurvature
from zo_common.wire.plan import Plan, Reply, Status, decode_reply

MAX_EXAMPLES = 100_000_000
_WORDS = {Status.CHECKSUM: "its weights are not the server's, though rebuilt from its base model and all rounds"}


class Refused(Exception):
    """Invalid reply, which must not affect the model; `reason` is a short fixed code for counting."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason = reason
        super().__init__(detail)


def check_reply(data: bytes, plan: Plan, max_scalar: float, *, votes: bool = False) -> Reply:
    """Unpack and check the reply to `plan`.

    A BEHIND reply passes: it is a request for older rounds, not an error.

    Args:
        votes: whether the run aggregates signs; otherwise ±1 would be read as a measured slope.

    Raises:
        Refused: malformed, one-bit, wrong-round, wrong-client, wrong-seed, wrong-checksum, wrong-shape, no-examples,
            non-finite, out-of-range, bad-curvature, or the client's own refusal.
    """
    try:
        reply = decode_reply(data)
    except CodecError as error:
        raise Refused("malformed", str(error)) from None
    if reply.one_bit and not votes:
        raise Refused(
            "one-bit", "reply holds signs, expected float32 scalars: it is for aggregation=sign-vote, update the device"
        )
    check_fields(reply, plan)
    if reply.status is not Status.BEHIND:
        _check_scalars(reply, plan, max_scalar)
    return reply


def check_fields(reply: Reply, plan: Plan) -> None:
    """Check all fields of a reply except its scalars.

    Raises:
        Refused: as `check_reply`.
    """
    if reply.server_round != plan.server_round:
        raise Refused("wrong-round", f"reply is for round {reply.server_round}, the plan for {plan.server_round}")
    if reply.client_id != plan.client_id:
        raise Refused("wrong-client", f"reply names client {reply.client_id}, the plan {plan.client_id}")
    if reply.seed != plan.seed:
        raise Refused("wrong-seed", f"reply has seed {reply.seed:016x}, the plan {plan.seed:016x}")
    if reply.status is Status.BEHIND:
        return
    if reply.status is not Status.OK:
        text = plain(reply.message) or _WORDS.get(reply.status, reply.status.name)
        raise Refused(reply.status.reason, text)
    if reply.have_round != plan.server_round - 1:
        raise Refused("wrong-round", f"client trained on round {reply.have_round}, expected {plan.server_round - 1}")
    if plan.checksum and reply.checksum != plan.checksum:
        raise Refused("wrong-checksum", f"client trained at {reply.checksum:016x}, expected {plan.checksum:016x}")


def _check_scalars(reply: Reply, plan: Plan, max_scalar: float) -> None:
    expected = (plan.local_steps, plan.estimator.num_queries)
    if reply.projected_grads.shape != expected:
        raise Refused("wrong-shape", f"reply holds {reply.projected_grads.shape} scalars, expected {expected}")
    if not 0 < reply.num_examples <= MAX_EXAMPLES:
        raise Refused("no-examples", f"reply claims {reply.num_examples} examples")
    if not np.isfinite(reply.projected_grads).all():
        raise Refused("non-finite", "reply holds a scalar that is not finite")
    if not np.isfinite(reply.loss):
        raise Refused("non-finite", "reply holds a loss that is not finite")
    largest = float(np.abs(reply.projected_grads).max())
    if largest > max_scalar:
        raise Refused("out-of-range", f"reply holds a scalar of size {largest:g}, max-scalar is {max_scalar:g}")
    _check_curvature(reply.curvature, plan)


def _check_curvature(found: Curvature | None, plan: Plan) -> None:
    if (found is not None) != plan.curvature:
        raise Refused("bad-curvature", f"reply {'lacks' if found is None else 'holds'} a curvature, the plan differs")
    if found is None:
        return
    if not np.isfinite(astuple(found)).all():
        raise Refused("bad-curvature", "reply holds a curvature that is not finite")
    if found.per_direction < 0 or found.noise < 0:
        raise Refused(
            "bad-curvature",
            f"reply holds a curvature of {found.per_direction:g} and noise of {found.noise:g}, expected none below 0",
        )


class RoundInbox:
    """Collects the replies of one round: at most one per client; others are refused by reason.

    `votes` is as in `check_reply`. `details` says why replies were refused, `words` holds messages of devices whose
    replies count, `failed` the reason and detail of each node without a valid reply.
    """

    def __init__(self, plans: dict[int, Plan], max_scalar: float, *, votes: bool = False) -> None:
        self._plans = plans
        self._max_scalar, self._votes = max_scalar, votes
        self.refused: Counter[str] = Counter()
        self.details: list[str] = []
        self.words: list[str] = []
        self.replies: dict[int, Reply] = {}
        self.behind: dict[int, int] = {}
        self.failed: dict[int, tuple[str, str]] = {}

    @property
    def accepted(self) -> int:
        """Number of valid replies."""
        return len(self.replies)

    def put(self, node_id: int, data: bytes) -> None:
        """Process one node's reply."""
        plan = self._plans.get(node_id)
        if plan is None:
            self.refuse("not-asked", f"node {node_id} was not asked")
            return
        if node_id in self.replies:
            self.refuse("duplicate", f"client {plan.client_id} answered twice")
            return
        try:
            reply = self.check(node_id, data, plan)
        except Refused as refused:
            self.refuse(refused.reason, f"client {plan.client_id}: {refused}", node_id)
            return
        if reply.status is Status.BEHIND:
            self.behind[node_id] = reply.have_round
        else:
            self.replies[node_id] = reply
            self.failed.pop(node_id, None)  # such as an answer to an earlier round, that came first
            if reply.message:
                self.words.append(f"client {reply.client_id}: {plain(reply.message)}")

    def check(self, node_id: int, data: bytes, plan: Plan) -> Reply:
        """Return the checked reply; raises Refused."""
        return check_reply(data, plan, self._max_scalar, votes=self._votes)

    def refuse(self, reason: str, detail: str, node_id: int | None = None) -> None:
        """Count a refusal; with `node_id`, that node counts as failed in this round."""
        self.refused[reason] += 1
        self.details.append(detail)
        if node_id is not None and node_id not in self.replies:
            self.failed[node_id] = reason, detail

    def agree_on_checksum(self) -> None:
        """Take the majority's checksum, since a server without a model cannot know it; refuse the other replies."""
        votes = Counter(reply.checksum for reply in self.replies.values())
        if len(votes) > 1:
            majority = max(votes, key=lambda checksum: votes[checksum])
            if 2 * votes[majority] <= len(self.replies):
                self.replies.clear()
                self.refuse("no-majority", f"the devices' checksums differ, and none is that of most of {len(votes)}")
                return
            for node_id in [n for n, reply in self.replies.items() if reply.checksum != majority]:
                del self.replies[node_id]
                text = f"client {self._plans[node_id].client_id} differs from the majority"
                self.refuse("wrong-checksum", text, node_id)

    @property
    def messages(self) -> dict[str, str]:
        """Return client id → message, of valid replies with a message."""
        return {str(r.client_id): plain(r.message) for r in self.replies.values() if r.message}

    def scalars(self) -> list[ClientScalars]:
        """Return the valid replies' scalars, ready to aggregate."""
        return [ClientScalars(r.client_id, r.seed, r.num_examples, r.projected_grads) for r in self.replies.values()]

    def curvatures(self) -> list[RelativeCurvature]:
        """Return the curvatures of the valid replies by client id; replies without one are left out."""
        found = []
        for reply in sorted(self.replies.values(), key=lambda r: r.client_id):
            if reply.curvature is not None:
                square = float(np.square(reply.projected_grads.astype(np.float64)).mean())
                found.append(reply.curvature.relative(square))
        return [each for each in found if each is not None]
