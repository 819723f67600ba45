"""Side channels on the network: lengths and times of messages. `python -m benchmarks.attacks.recorder`.

Two devices that have nothing in common, one with the shortest utterances and one with the longest, answer the same
plans; every message has the same length for both. Seconds of a reply are CPU seconds of the device's own work.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from benchmarks.attacks.settings import Settings
from benchmarks.attacks.speech import speech
from benchmarks.harness.rows import store
from client.device.engine import Engine
from client.device.warm import warm_engine
from zo_common.directions.seeds import shared_seed
from zo_common.models.ctc.loss import CTCBatch
from zo_common.privacy.mechanism import Mechanism
from zo_common.secure_sum.messages import MaskedInput
from zo_common.speech.ctc import CTCDataset
from zo_common.wire.masked_reply import encode_masked, vector_of
from zo_common.wire.plan import Plan, Status, encode_plan, encode_reply

STEPS = 1
BATCH = 4
REPLIES = 16
UTTERANCES = 24
_SESSION = bytes(16)


@dataclass(frozen=True, eq=False)
class Listened(CTCDataset):
    """A data set that records the seconds of audio in each batch."""

    seconds_used: list[float] = field(default_factory=list)

    def batch(self, indices: Any) -> CTCBatch:
        """As `CTCDataset.batch`."""
        self.seconds_used.append(sum(self.examples[index].seconds for index in indices))
        return super().batch(indices)


def plan_of(engine: Engine, settings: Settings, server_round: int, client_id: int) -> Plan:
    """Return a round's plan without a guarantee."""
    return Plan(
        server_round=server_round,
        seed=shared_seed(0, server_round),
        client_id=client_id,
        base_id=engine.base_id,
        checksum=0,
        local_steps=STEPS,
        batch_size=BATCH,
        learning_rate=1e-3,
        estimator=settings.estimator,
    )


def lengths(
    engine: Engine, data: CTCDataset, settings: Settings, client_id: int, guarantee: Mechanism
) -> dict[str, int]:
    """Return bytes of the messages of one device and round."""
    plan = plan_of(engine, settings, 1, client_id)
    private = replace(plan, privacy=guarantee)
    reply, noised = engine.train(plan, data), engine.train(private, data)
    assert reply.status is noised.status is Status.OK
    vector, _ = vector_of(reply, 1, 2)
    masked = MaskedInput(_SESSION, client_id, vector.view(np.uint64)).encode()
    return {
        "plan": len(encode_plan(plan)),
        "plan, example-level": len(encode_plan(private)),
        "reply": len(encode_reply(reply)),
        "reply, example-level": len(encode_reply(noised)),
        "reply, sign-vote": len(encode_reply(replace(reply, one_bit=True))),
        "reply, secure sum": len(encode_masked(reply, masked)),
    }


def timing(engine: Engine, data: CTCDataset, settings: Settings, guarantee: Mechanism | None) -> dict[str, float]:
    """Return how seconds of a reply go with the seconds of audio in its batch."""
    speech = Listened(data.examples, data.extractor)
    audio, durations = [], []
    for index in range(REPLIES + 1):
        plan = replace(plan_of(engine, settings, 1, 0), seed=shared_seed(0, 1 + index), privacy=guarantee)
        speech.seconds_used.clear()
        started = time.process_time()
        engine.train(plan, speech)
        durations.append(time.process_time() - started)
        audio.append(sum(speech.seconds_used))
    audio, durations = audio[1:], durations[1:]  # the first one warms up
    return {
        "replies": REPLIES,
        "least_audio": min(audio),
        "most_audio": max(audio),
        "least_seconds": min(durations),
        "most_seconds": max(durations),
        "correlation": float(np.corrcoef(audio, durations)[0, 1]),
    }


def seen(settings: Settings) -> dict[str, Any]:
    """Return lengths for both devices, and times with and without the example-level guarantee."""
    engine = warm_engine(settings.config)
    pool = speech(engine, settings, 0).pool
    order = sorted(range(len(pool)), key=lambda index: pool.examples[index].seconds)
    chosen = {"short": order[:UTTERANCES], "long": order[-UTTERANCES:]}
    guarantee = Mechanism("example", 10.0, 1.0, UTTERANCES)
    found: dict[str, Any] = {"steps": STEPS, "queries": settings.queries, "batch": BATCH, "devices": {}}
    for client_id, (name, indices) in enumerate(chosen.items()):
        data = replace(pool, examples=tuple(pool.examples[index] for index in indices))
        found["devices"][name] = {
            "audio_seconds": data.seconds,
            "bytes": lengths(engine, data, settings, client_id, guarantee),
        }
    mixed = replace(pool, examples=pool.examples[:UTTERANCES])
    found["times"] = {
        "plain": timing(engine, mixed, settings, None),
        "example": timing(engine, mixed, settings, guarantee),
    }
    return found


def main() -> None:
    import torch

    torch.set_num_threads(1)
    print(f"wrote {store('recorder', seen(Settings()))}")


if __name__ == "__main__":
    main()
