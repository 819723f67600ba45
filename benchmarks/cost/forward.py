"""Optimisations of forward passes, each compared with the same passes without it: time ratios and padding saved.

bfloat16 autocast against float32; `torch.compile` against eager layers; encoder states kept over the passes of a step
where only decoder tensors are trained; batches of similar length against batches drawn from all lengths.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness.rows import ratio, store
from simulations.cli import SCENARIOS
from simulations.models.whisper_import import bundled_whisper
from simulations.scenario import read_scenario
from simulations.speech.corpus import write_corpus
from zo_common.estimator.rounding_noise import measure_noise
from zo_common.estimator.settings import EstimatorConfig
from zo_common.estimator.step import zo_step
from zo_common.lattice.state import LatticeState
from zo_common.lattice.trained import select
from zo_common.models.compiled import compile_layers
from zo_common.models.compute import resolve_precision
from zo_common.models.load import load_model
from zo_common.models.whisper.frozen_prefix import FrozenPrefix
from zo_common.models.whisper.loss import WhisperLoss
from zo_common.models.whisper.objectives import WhisperBatch
from zo_common.speech.whisper import SpeechDataset, load_dataset

BATCH = 8


def whole_forward(model: Any, batch: WhisperBatch, precision: str = "float32") -> WhisperLoss:
    """Return the loss with every encoder stage computed in every pass."""
    return WhisperLoss(model, batch, FrozenPrefix(model, select(model, "all")), precision=precision)


def precision_ratio(model: Any, batch: WhisperBatch, repeats: int) -> dict[str, Any]:
    """Return the time of a forward in the precision of "auto" on this processor ÷ in float32."""
    chosen = resolve_precision("auto", torch.device("cpu"))
    return {"precision": chosen} | ratio(whole_forward(model, batch, chosen), whole_forward(model, batch), repeats)


def compile_ratio(source: str, batch: WhisperBatch, repeats: int) -> dict[str, Any]:
    """Return the time of a float32 forward with compiled layers ÷ eager, after warm-up."""
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        return {"skipped": "torch.compile needs a C++ compiler on CPU"}
    eager, compiled = load_model(source).model, load_model(source).model
    compile_layers(compiled)
    return ratio(whole_forward(compiled, batch), whole_forward(eager, batch), repeats)


def cached_encoder_ratio(model: Any, batch: WhisperBatch, repeats: int) -> dict[str, Any]:
    """Return a decoder step's time with encoder states kept ÷ computed by every pass, q = 8."""
    state = LatticeState(model, "decoder-ffn")
    config = EstimatorConfig("two-sided", 8, 1e-3)

    def cached() -> None:
        zo_step(state, WhisperLoss(model, batch, FrozenPrefix(model, state.exponents)), 3, 0, config, 0.0)

    return ratio(cached, lambda: zo_step(state, whole_forward(model, batch), 3, 0, config, 0.0), repeats)


def noise(model: Any, batch: WhisperBatch) -> list[dict[str, Any]]:
    """Return loss difference and rounding noise (`zo_common.estimator.rounding_noise`) by precision and ε."""
    state = LatticeState(model, "encoder-early")
    rows = []
    for precision in ("float32", "bfloat16"):
        for epsilon in (1e-3, 1e-4, 1e-5):
            found = measure_noise(state, whole_forward(model, batch, precision), range(4), epsilon)
            about = {"precision": precision, "epsilon": epsilon, "warns": found.too_large}
            rows.append(about | {"difference": found.difference, "noise": found.noise, "share": found.share})
    return rows


def padding(data: SpeechDataset, draws: int) -> dict[str, float]:
    """Return share of mel frames that are padding in batches drawn by length, and drawn from all lengths."""
    generator = np.random.default_rng(0)
    frames = np.array([example.features.shape[1] for example in data.examples])

    def share(batches: list[list[int]]) -> float:
        computed = sum(len(batch) * frames[batch].max() for batch in batches)
        return float(1 - sum(frames[batch].sum() for batch in batches) / computed)

    return {
        "bucketed": share([data.draw(BATCH, generator) for _ in range(draws)]),
        "from_all_lengths": share([list(generator.permutation(len(data))[:BATCH]) for _ in range(draws)]),
    }


def demo_speech(processor: Any) -> SpeechDataset:
    """Return the demo's train split; it is synthesised at the first call."""
    corpus = read_scenario(SCENARIOS / "demo.toml").corpus
    assert corpus is not None
    return load_dataset(str(write_corpus(Path("data/demo-0"), corpus).directory), processor, split="train")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="measure torch.compile, too (a minute of compiling)")
    arguments = parser.parse_args()
    source = str(bundled_whisper(Path("models")))
    model, processor = load_model(source)
    data = demo_speech(processor)
    batch = data.batch(data.draw(BATCH, np.random.default_rng(0)))
    with torch.inference_mode():
        numbers: dict[str, Any] = {
            "batch": BATCH,
            "threads": torch.get_num_threads(),
            "auto_precision_over_float32": precision_ratio(model, batch, arguments.repeats),
            "cached_encoder_over_computed": cached_encoder_ratio(model, batch, arguments.repeats),
            "rounding_noise": noise(model, batch),
            "padding_share": padding(data, 200),
        }
        if arguments.compile:
            numbers["compiled_over_eager"] = compile_ratio(source, batch, arguments.repeats)
    print(numbers)
    print(f"wrote {store('forward', numbers)}")


if __name__ == "__main__":
    main()
