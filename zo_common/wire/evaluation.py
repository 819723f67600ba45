"""A device's evaluation reply: counts that the server can sum, never a transcript."""

from __future__ import annotations

import math
import struct
from dataclasses import astuple, dataclass, field

from zo_common.binary.packing import Reader, pack_text
from zo_common.errors import CodecError
from zo_common.speech.metrics import ErrorCounts, Scores
from zo_common.wire.plan import Status

_MAGIC = b"ZE"
_VERSION = 1
_LAYOUT = "BIIQQd13I"
_MAX_LOSS = 1e6
_MOST_UTTERANCES = 1_000_000
_MOST_WORDS, _MOST_CHARACTERS = 10_000, 100_000  # of an utterance, spoken or put in


@dataclass(frozen=True)
class EvaluationReply:
    """Error counts of one device's held-out speech at the state after `have_round`.

    Attributes:
        loss_sum: sum of the utterances' losses, nats a token; the mean over devices needs `scores.utterances`.
    """

    status: Status
    server_round: int
    have_round: int
    client_id: int
    checksum: int
    loss_sum: float = 0.0
    scores: Scores = field(default_factory=Scores)
    message: str = ""


def encode_evaluation(reply: EvaluationReply) -> bytes:
    """Pack the reply: 90 bytes, the last two of them the length of the message, and the message."""
    s = reply.scores
    counts = [*astuple(s.words), *astuple(s.characters), *astuple(s.raw_words), s.utterances]
    head = struct.pack(
        "<2sB" + _LAYOUT,
        _MAGIC,
        _VERSION,
        reply.status,
        reply.server_round,
        reply.have_round,
        reply.client_id,
        reply.checksum,
        reply.loss_sum,
        *counts,
    )
    return head + pack_text(reply.message)


def decode_evaluation(data: bytes) -> EvaluationReply:
    """Inverse of `encode_evaluation`.

    Raises:
        CodecError: truncated, of unknown status, or counts that cannot be.
    """
    reader = Reader.open(data, "evaluation reply", _MAGIC, _VERSION)
    status, rnd, have, client, checksum, loss_sum, *counts = reader.take(_LAYOUT)
    message = reader.text()
    reader.finish()
    if status not in set(Status):
        raise CodecError(f"evaluation reply has unknown status {status}")
    words, characters, raw = (ErrorCounts(*counts[i : i + 4]) for i in (0, 4, 8))
    for kind in (words, characters, raw):
        if kind.substitutions + kind.deletions > kind.length:
            raise CodecError("evaluation reply counts more substitutions and deletions than there are words")
    if counts[-1] > _MOST_UTTERANCES:
        raise CodecError(f"evaluation reply counts {counts[-1]} utterances, expected at most {_MOST_UTTERANCES}")
    for kind, most in ((words, _MOST_WORDS), (characters, _MOST_CHARACTERS), (raw, _MOST_WORDS)):
        if kind.length + kind.insertions > most * counts[-1]:
            raise CodecError(f"evaluation reply counts more than {most} words or characters an utterance")
    if not (math.isfinite(loss_sum) and 0 <= loss_sum <= _MAX_LOSS * max(counts[-1], 1)):
        raise CodecError(f"evaluation reply has loss sum {loss_sum}")
    scores = Scores(words, characters, raw, counts[-1])
    return EvaluationReply(Status(status), rnd, have, client, checksum, loss_sum, scores, message)
