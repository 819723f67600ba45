"""Peak resident memory of a process: a ZO step with frozen weights as served, over inference in the same precision.

Every number is a fresh process's. A checkpoint of the architecture with random float16 weights, the type of published
ones, is written once. Inference is the class of transformers, loaded in the precision (int8: weight-only by torchao),
its processor beside it, and two forward passes. The step is ours: the loading of a device, the lattice, and two steps
of two queries; trained are the tensors of the default preset. Beside them, in float32 and on all weights: a step of
MeZO as published, and of Adam. Peak = the largest resident memory of the process while
it computes (VmHWM, reset after loading), imports and all included; that of loading is beside it. One thread; seconds
are processor time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.cost.memory import MALLOC, Resident
from benchmarks.harness.revision import revision
from benchmarks.harness.rows import RESULTS, amount
from simulations.reports.machine import hardware, versions
from zo_common.lattice.trained import DEFAULT

PRECISIONS = ("float32", "bfloat16", "int8")
KINDS = ("inference", "step")
OTHERS = {"mezo": "MeZO as published, all weights", "adam": "Adam, all weights"}
_FREE = 0.9  # share of the memory that a process may have: beyond that the system kills it
_COPIES_OF_ADAM = 4  # weights, gradients and two moments
TRAINED = DEFAULT
QUERIES = 2
RESULT = RESULTS / "serving.jsonl"


def write_checkpoint(architecture: str, folder: Path) -> None:
    """Write a model with random float16 weights, and a processor for it."""
    import torch
    from safetensors.torch import save_file
    from transformers import WhisperFeatureExtractor, WhisperProcessor

    from benchmarks.harness.workload import bundled, random_whisper
    from zo_common.lattice.trained import unique_parameters

    empty = random_whisper(architecture, "meta")
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: (0.02 * torch.randn(parameter.shape, generator=generator)).half()
        for name, parameter in unique_parameters(empty).items()
    }
    for name, weight in weights.items():
        if "layer_norm.weight" in name:
            weight.fill_(1)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    empty.config.save_pretrained(folder)
    empty.generation_config.save_pretrained(folder)
    extractor = WhisperFeatureExtractor(feature_size=empty.config.num_mel_bins)
    WhisperProcessor(extractor, WhisperProcessor.from_pretrained(bundled()).tokenizer).save_pretrained(folder)


def inference(folder: str, precision: str, batch: int) -> Callable[[], Any]:
    """Run two forward passes of transformers' class."""
    import torch
    from torch import nn
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    from benchmarks.harness import workload

    kind = torch.float32 if precision == "float32" else torch.bfloat16
    model: Any = WhisperForConditionalGeneration.from_pretrained(folder, dtype=kind, attn_implementation="sdpa")
    model.eval().requires_grad_(False)
    if precision == "int8":
        from torchao import quantization

        def linear(module: nn.Module, path: str) -> bool:
            return isinstance(module, nn.Linear) and path != "proj_out"  # it is tied to the embedding

        quantization.quantize_(model, quantization.Int8WeightOnlyConfig(), filter_fn=linear)
    drawn = workload.random_batch(model, batch)
    loss = workload.whole_loss(model, type(drawn)(drawn.features.to(kind), drawn.decoder_input_ids, drawn.labels))

    processor = WhisperProcessor.from_pretrained(folder)

    @torch.inference_mode()
    def forwards() -> None:
        assert processor.tokenizer.vocab_size  # who transcribes keeps it
        for _ in range(2):
            loss()

    return forwards


def step(folder: str, precision: str, batch: int) -> Callable[[], Any]:
    """Run two steps of a device."""
    from benchmarks.harness import workload
    from zo_common.estimator.settings import EstimatorConfig
    from zo_common.estimator.step import zo_step
    from zo_common.lattice.state import LatticeState
    from zo_common.models.frozen.load import load_held
    from zo_common.models.load import load_model

    if precision == "float32":
        model: Any = load_model(folder).model
    else:
        model = load_held(folder, language="en", trained=TRAINED, precision=precision).loaded.model
    state, config = LatticeState(model, TRAINED), EstimatorConfig("two-sided", QUERIES, workload.EPSILON)
    computed = "float32" if precision == "float32" else "bfloat16"

    def steps() -> None:
        for number in range(2):
            loss = workload.device_loss(model, workload.random_batch(model, batch), TRAINED, computed)
            zo_step(state, loss, 7, number, config, workload.LEARNING_RATE)

    return steps


def other(folder: str, kind: str, batch: int) -> Callable[[], Any]:
    """One step of another method, on all weights in float32."""
    from benchmarks.cost.memory import make_action
    from benchmarks.harness import workload
    from zo_common.models.load import load_model

    model = load_model(folder).model
    method = "plain" if kind == "mezo" else kind
    return make_action(method, model, workload.random_batch(model, batch), "all", "float32", 1)


def child(arguments: argparse.Namespace) -> dict[str, float]:
    """Return bytes and processor seconds of one process."""
    import torch

    torch.set_num_threads(1)
    meter = Resident()
    meter.start()
    if arguments.child in OTHERS:
        action, passes = other(arguments.folder, arguments.child, arguments.batch), 2
    else:
        make, passes = {"inference": (inference, 2), "step": (step, 4 * QUERIES)}[arguments.child]
        action = make(arguments.folder, arguments.precision, arguments.batch)
    loading = meter.peak()
    loaded = meter.start()
    started = time.process_time()
    action()
    seconds = (time.process_time() - started) / passes
    return {"peak": meter.peak(), "loading_peak": loading, "loaded": loaded, "seconds_a_pass": seconds}


def fresh(arguments: argparse.Namespace, kind: str, precision: str, batch: int, folder: str) -> dict[str, float]:
    """`child` in a process of its own."""
    options = {"child": kind, "precision": precision, "batch": batch, "folder": folder}
    command = [sys.executable, "-m", "benchmarks.cost.serving", *(f"--{key}={value}" for key, value in options.items())]
    command.append(f"--architecture={arguments.architecture}")
    environment = os.environ | MALLOC | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(kind, precision, batch, found, flush=True)
    return found


def measure(arguments: argparse.Namespace, folder: str) -> None:
    """Measure and store what is not stored yet: a run goes on where it was killed."""
    cases = [(kind, precision) for precision in PRECISIONS for kind in KINDS] + [(kind, "float32") for kind in OTHERS]
    for batch in arguments.batches:
        for kind, precision in cases:
            case = {"architecture": arguments.architecture, "precision": precision, "batch": batch, "kind": kind}
            if any(case.items() <= line.items() for line in _stored()):
                continue
            found = _too_large(kind, folder) or fresh(arguments, kind, precision, batch, folder)
            about = {"revision": revision(), "hardware": hardware("cpu"), "versions": versions()}
            with RESULT.open("a") as file:
                file.write(json.dumps(case | found | about) + "\n")


def _too_large(kind: str, folder: str) -> dict[str, float]:
    """Return the least bytes that Adam takes if this machine has no more for them, else nothing."""
    weights = 2 * (Path(folder) / "model.safetensors").stat().st_size  # from float16
    least = _COPIES_OF_ADAM * weights
    return {"at_least": least} if kind == "adam" and least > _FREE * hardware("cpu")["memory_gib"] * 2**30 else {}


def _stored() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULT.read_text().splitlines()] if RESULT.exists() else []


def table() -> str:
    """Return the measured cases, for docs/precision.md."""
    lines = [
        "| Whisper | frozen weights | batch | inference, peak | step, peak | step ÷ inference | "
        "loading for steps, peak | a pass, inference → step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    stored = _stored()
    for served in (line for line in stored if line["kind"] == "inference"):
        case = {name: served[name] for name in ("architecture", "precision", "batch")} | {"kind": "step"}
        ours = next((line for line in stored if case.items() <= line.items()), None)
        if ours is None:
            continue
        lines.append(
            f"| {case['architecture']} | {case['precision']} | {case['batch']} | {amount(served['peak'], 'B')} | "
            f"{amount(ours['peak'], 'B')} | {ours['peak'] / served['peak']:.3f} | "
            f"{amount(ours['loading_peak'], 'B')} | "
            f"{served['seconds_a_pass']:.2f} s → {ours['seconds_a_pass']:.2f} s |"
        )
    lines.append("| any, on CUDA | | | not measured | not measured | | | |")
    lines += _table_of_others(stored)
    about = f"Resident memory of whole processes, imports included; one thread of {stored[0]['hardware']['cpu']}."
    return "\n".join([*lines, "", about])


def time_of_a_pass(precision: str) -> str:
    """Return the time of a pass of a step of large-v3 ÷ that in float32, of one utterance."""
    case = {"architecture": "large-v3", "batch": 1, "kind": "step"}
    seconds = {r["precision"]: r["seconds_a_pass"] for r in _stored() if case.items() <= r.items()}
    return f"{seconds[precision] / seconds['float32']:.2f}"


def _table_of_others(stored: list[dict[str, Any]]) -> list[str]:
    lines = ["", "| Whisper, float32 | batch | method | peak | ÷ inference |", "|---|---|---|---|---|"]
    for line in stored:
        if line["kind"] not in OTHERS:
            continue
        case = {name: line[name] for name in ("architecture", "precision", "batch")} | {"kind": "inference"}
        served = next((each["peak"] for each in stored if case.items() <= each.items()), None)
        known = "peak" in line
        peak = line["peak"] if known else line["at_least"]
        size = amount(peak, "B") if known else f"at least {amount(peak, 'B')}: more than the machine has"
        lines.append(
            f"| {line['architecture']} | {line['batch']} | {OTHERS[line['kind']]} | {size} | "
            f"{peak / served if served else float('nan'):.2f} |"
        )
    return lines if len(lines) > 3 else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--architecture", default="base")
    parser.add_argument("--batches", type=int, nargs="+", default=[1])
    parser.add_argument("--folder", help="keep the checkpoint here, or take it from here; default: a temporary folder")
    parser.add_argument("--child", choices=(*KINDS, *OTHERS), help=argparse.SUPPRESS)
    parser.add_argument("--precision", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(arguments)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.folder or temporary)
        if not (folder / "model.safetensors").exists():
            write_checkpoint(arguments.architecture, folder)
        measure(arguments, str(folder))
    print(table())


if __name__ == "__main__":
    main()
