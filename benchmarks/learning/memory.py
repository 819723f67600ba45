"""Peak memory and seconds of one device's step: ours beside Adam's, with whole batches and one utterance at a time.

    python -m benchmarks.learning.memory

Every number is a fresh process's: the largest resident memory during two steps on a batch of 16 utterances of five
seconds, less what the process held before the model; seconds are those of the second step. Micro-batches of one
utterance with layers computed again on the way back are first order at its thriftiest.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.cost.memory import MALLOC, Resident
from benchmarks.harness.rows import store
from benchmarks.learning.first_order import LORA
from zo_common.lattice.trained import DEFAULT

BATCH = 16
THRIFTY = (("micro", 1.0), ("checkpointing", 1.0))
# name → (tensors, further settings); "zo" is ours, "default" with the batch of its default
STEPS: dict[str, tuple[str, tuple[tuple[str, float], ...]]] = {
    "zo": (DEFAULT, ()),
    "default": (DEFAULT, ()),
    "all": ("all", ()),
    "all-thrifty": ("all", THRIFTY),
    LORA: (LORA, ()),
    "lora-thrifty": (LORA, THRIFTY),
    "bias": ("bias", ()),
    "bias-thrifty": ("bias", THRIFTY),
}


class OneDevice:
    """A crowd of one device whose every batch is the same random utterances."""

    devices = 1

    def __init__(self, model: Any, tail_tokens: int) -> None:
        from benchmarks.harness.workload import random_batch

        self.model = model
        self._batch, self._tail = random_batch(model, BATCH), tail_tokens

    def examples(self, device: int) -> int:
        """As `Crowd.examples`."""
        return BATCH

    def draw(self, device: int, seed: int, step: int, size: int) -> list[int]:
        """As `Crowd.draw`."""
        return list(range(min(size, BATCH)))

    def batch(self, device: int, chosen: list[int]) -> Any:
        """As `Crowd.batch`."""
        b = self._batch
        return type(b)(b.features[chosen], b.decoder_input_ids[chosen], b.labels[chosen])

    def chosen_loss(self, state: Any, tail_tokens: int, epsilon: float) -> tuple[Any, float]:
        """As `Crowd.chosen_loss`, of what is given."""
        return self.losses(state.exponents, tail_tokens), epsilon

    def losses(self, trained: Any, tail_tokens: int, precision: str = "float32") -> Any:
        """As `Crowd.losses`, in float32."""
        from zo_common.models.whisper.frozen_prefix import FrozenPrefix
        from zo_common.models.whisper.loss import WhisperLoss

        prefix = FrozenPrefix(self.model, list(trained))
        return lambda batch: WhisperLoss(self.model, batch, prefix, tail_tokens, "float32")


def child(name: str, model: str, tail_tokens: int) -> dict[str, float]:
    """Return bytes and seconds of one kind of step in this process."""
    from benchmarks.learning.first_order import FirstOrder
    from benchmarks.learning.lattice_rounds import LatticeRounds
    from benchmarks.learning.method import Settings
    from benchmarks.learning.rates import FixedRate
    from zo_common.config.run import RunConfig
    from zo_common.models.load import load_model

    tensors, extra = STEPS[name]
    size = RunConfig().batch_size if name == "default" else BATCH
    settings = Settings(
        name, tensors, learning_rate=1e-6, devices=1, extra=extra, tail_tokens=tail_tokens, batch_size=size
    )
    meter = Resident()
    before = meter.start()
    crowd: Any = OneDevice(load_model(model).model, tail_tokens)
    if name in ("zo", "default"):
        method: Any = LatticeRounds(crowd, replace(settings, epsilon=2e-2), FixedRate(1e-6, "constant", 2))
    else:
        method = FirstOrder(crowd, settings)
    method.round(1)
    began = time.perf_counter()
    method.round(2)
    return {"peak": meter.peak() - before, "seconds": time.perf_counter() - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["models/whisper-tiny.en", "models/whisper-base"])
    parser.add_argument("--tail-tokens", type=int, default=256)
    parser.add_argument("--child", choices=STEPS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(arguments.child, arguments.models[0], arguments.tail_tokens)))
        return
    found: dict[str, dict[str, Any]] = {}
    for model in arguments.models:
        found[Path(model).name] = {name: _fresh(name, model, arguments.tail_tokens) for name in STEPS}
    print(f"wrote {store('learning_memory', {'batch': BATCH, 'models': found})}")


def _fresh(name: str, model: str, tail_tokens: int) -> dict[str, float]:
    options = ["--models", model, "--tail-tokens", str(tail_tokens), "--child", name]
    command = [sys.executable, "-m", "benchmarks.learning.memory", *options]
    done = subprocess.run(command, env=os.environ | MALLOC, capture_output=True, text=True, check=True)
    row: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{Path(model).name} {name}: {row['peak'] / 2**20:,.0f} MiB, {row['seconds']:.1f} s", flush=True)
    return row


if __name__ == "__main__":
    main()
