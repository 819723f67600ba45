"""Training of any `nn.Module` with a per-example loss: the rounds, guard and ledger of a run on speech."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from client.device.engine import Engine
from client.device.warm import forget_all, keep_warm
from server.guards.closing import Losses
from server.guards.held_out_guard import HeldOutGuard
from server.guards.round_guard import RoundGuard
from server.rounds.events import EvaluatedRun, Events
from server.rounds.federation import Federation
from server.rounds.result import RunResult
from server.rounds.verdict import verdict_on
from server.run.log import EVALUATION, RoundReport, write_whole
from server.tracking.choice import trackers_of
from server.tracking.tracking import Tracking
from train.one_process import OneProcess
from zo_common.config.run import RunConfig
from zo_common.errors import ChecksumMismatch, ConfigError, RunStopped
from zo_common.estimator.step import LossFn
from zo_common.models.loss_check import LossChoice
from zo_common.speech.recordings import Recordings

LossesOf = Callable[[list[Any]], torch.Tensor]
_LOOK_BATCH = 16


def train_module(
    module: nn.Module,
    losses: LossesOf,
    examples: Sequence[Any],
    *,
    learning_rate: float,
    held_out: Sequence[Any] = (),
    on_round: Callable[[RoundReport], None] | None = None,
    **settings: Any,
) -> RunResult:
    """Train a module in place, by forward passes alone, and return the result.

    The module is put into eval mode without gradients, and its trained tensors are rounded to their lattice. With
    `held_out`, a guard checks the module every `guard_every` rounds: rounds that raise its loss are undone, and the run
    ends with its best state. An interrupted run is resumed with `resume=True`, the same `output` and a module with its
    base weights; the result is the same bit for bit.

    Args:
        losses: function that returns the loss of each example of a batch, shape (B,), with the present weights.
        examples: training examples; a batch is a list of them.
        learning_rate: step size for the mean over queries.
        held_out: examples for the guard and for the reported result.
        on_round: called after each round, once it is in the ledger.
        settings: fields of `RunConfig`, such as `trained_tensors` (a pattern, default "all"), `num_server_rounds`,
            `num_queries`, `batch_size`, `epsilon`, `output` (default `results/<time>-module`).

    Raises:
        ConfigError, PatternError, EpsilonTooSmall: before the first round.
        WrongBaseModel: a run is resumed with a module that does not have its base weights.
    """
    fixed = {"model": type(module).__name__, "data": "examples", "loss_check": False, "guard_split": "none"}
    chosen = {"trained_tensors": "all", "output": f"results/{time.strftime('%Y%m%d-%H%M%S')}-module"} | settings
    config = RunConfig.from_mapping(chosen | {"learning_rate": learning_rate} | fixed)
    if config.learning_rate == "auto":
        raise ConfigError(
            "learning-rate is 'auto' for a module, expected a number: the step is measured of speech models' losses"
        )
    if config.frozen_precision != "float32":
        raise ConfigError(
            f"frozen-precision is {config.frozen_precision!r} for a module, expected float32: it is for speech models "
            "that are loaded from files, convert the module's own frozen weights before training"
        )
    if not examples:
        raise ConfigError("there are no examples to train on, expected one or more: give examples")
    keep_warm(config, _ModuleEngine(config, module, losses), _Examples(examples))
    try:
        _run(config, losses, _Examples(held_out), on_round)
    finally:
        forget_all()
    return RunResult.of(config)


def _run(
    config: RunConfig, losses: LossesOf, held_out: _Examples, on_round: Callable[[RoundReport], None] | None
) -> None:
    place = OneProcess(config)
    curve: list[dict[str, Any]] = []

    def evaluate(server_round: int, run: EvaluatedRun) -> dict[str, Any] | None:
        if len(held_out):
            found = float(_losses_of(losses, held_out).mean())
            curve.append({"server_round": server_round, "loss": found, "utterances": len(held_out)})
        return curve[-1] if curve else None

    events = Events(on_evaluate=evaluate) if on_round is None else Events(on_round=on_round, on_evaluate=evaluate)
    with Tracking(config, trackers_of(config)) as tracking:
        run = Federation(config, place.grid, tracking.watched(events), place.model_of)
        tracking.start(run, held_out)
        if len(held_out):
            run.guard = _ExamplesGuard(config, run, losses, held_out)
        stopped = ""
        try:
            run.run()
        except RunStopped as error:
            stopped = str(error)
        before, after = (curve[0], curve[-1]) if curve else (None, None)
        verdict = verdict_on(run, before, after, stopped)
        tracking.finish(run, stopped, verdict)
    summary: dict[str, Any] = {"before": before, "after": after, "curve": curve, "guard": run.guard.summary()}
    summary |= {"verdict": verdict, "checksum": f"{run.checksum:016x}"}
    write_whole(Path(config.output) / EVALUATION, json.dumps(summary, indent=1) + "\n")


class _Examples(Recordings):
    """Examples of any kind; a batch is a list."""

    def __init__(self, examples: Sequence[Any]) -> None:
        self.examples = tuple(examples)
        self.skipped = ()

    def batch(self, indices: Sequence[int]) -> list[Any]:
        """As `Recordings.batch`."""
        return [self.examples[index] for index in indices]

    def draw(self, size: int, generator: np.random.Generator) -> list[int]:
        """As `Recordings.draw`, uniformly over the examples: they have no length."""
        return sorted(int(index) for index in generator.permutation(len(self))[:size])


class _ModuleEngine(Engine):
    """A device's engine around an existing module."""

    def __init__(self, config: RunConfig, module: nn.Module, losses: LossesOf) -> None:
        self._module, self._of_batch = module, losses
        super().__init__(config)

    def _load_base(self) -> None:
        nothing: Any = None
        self.processor = self.speech = nothing
        self._hold(self._module.eval().requires_grad_(False))

    def _use(self, choice: LossChoice) -> None:
        self.choice, self.precision = choice, choice.precision

    def rebuild(self) -> None:
        """Restore the base weights by exact negated replay: there is no file to read them from."""
        self.rewind(0)
        if (found := self.state.checksum()) != self.base_checksum:
            raise ChecksumMismatch(
                f"undoing all rounds leads to checksum {found:016x}, expected {self.base_checksum:016x}: something "
                "else changed the module's weights, create it again and resume the run"
            )

    def loss_fn(self, batch: list[Any]) -> LossFn:
        """As `Engine.loss_fn`."""
        return lambda: self._of_batch(batch)


class _ExamplesGuard(HeldOutGuard):
    """As `HeldOutGuard`, for all held-out examples of a module."""

    def __init__(self, config: RunConfig, run: Federation, losses: LossesOf, held_out: _Examples) -> None:
        assert run.global_model is not None
        self._data, self._best_round, self._last = held_out, 0, None
        self._losses = losses
        RoundGuard.__init__(self, config, run.global_model, f"loss of {len(held_out)} examples", run.events.on_stage)

    def _measure(self) -> Losses:
        found = _losses_of(self._losses, self._data)
        if self._best is None and not np.isfinite(found).all():
            raise ConfigError(
                f"{int((~np.isfinite(found)).sum())} of {len(found)} held-out losses are not finite before the first "
                "round: mend the module or leave those examples out"
            )
        return found


@torch.inference_mode()
def _losses_of(losses: LossesOf, data: Recordings) -> Losses:
    """Return the loss of each example, (N,)."""
    batches = [range(start, min(start + _LOOK_BATCH, len(data))) for start in range(0, len(data), _LOOK_BATCH)]
    return np.concatenate([losses(data.batch(batch)).double().numpy(force=True) for batch in batches])
