"""Packed replies that say why a request has no other answer."""

from __future__ import annotations

from client.worker.job import Kind
from zo_common.ledger.snapshot import SnapshotPart
from zo_common.wire.evaluation import EvaluationReply, encode_evaluation
from zo_common.wire.plan import Plan, Reply, Status, encode_reply


def refusal(kind: Kind, plan: Plan | None, part: SnapshotPart | None, have: int, status: Status, message: str) -> bytes:
    """Return the reply to a plan or to a part of a snapshot.

    Args:
        have: the round that the device has applied.
    """
    if part is not None:
        return encode_reply(Reply(status, part.server_round, have, part.client_id, 0, 0, message=message))
    assert plan is not None
    rnd, client = plan.server_round, plan.client_id
    if kind == "evaluate":
        return encode_evaluation(EvaluationReply(status, rnd, have, client, 0, message=message))
    return encode_reply(Reply(status, rnd, have, client, plan.seed, 0, message=message))


def status_text(reply: Reply | EvaluationReply) -> str:
    """Return a reply's status and message in one line."""
    return reply.status.name.lower() + (f": {reply.message}" if reply.message else "")
