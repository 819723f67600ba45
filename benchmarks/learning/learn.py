"""One run from the base model to its final evaluation; a killed run resumes from its last checkpoint."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.learning.crowd import Crowd
from benchmarks.learning.method import Cost, Method
from zo_common.errors import ZOError

Say = Callable[[str], None]
MOST_RISE = 2.0  # of a loss, as a multiple of the first


@dataclass(frozen=True)
class Budget:
    """Budget of a run.

    Attributes:
        passes: `Cost.passes`, after which it ends; the last round may go beyond.
        minutes: of learning, evaluations not counted, after which it ends; 0: no limit.
        points: evaluations of the development split on the way, at even distances.
        words: whether the development split is also transcribed at each of them.
        test_utterances: how much of a test split is transcribed, at even distances; 0: all.
    """

    passes: int
    minutes: float = 0.0
    points: int = 6
    words: bool = False
    test_utterances: int = 0


@dataclass
class Run:
    """Progress of a run.

    Attributes:
        curve: (passes, mean loss of the development split), from the base model on.
        words: (passes, word error rate of the development split), where it is transcribed.
        seconds: of learning.
        ended: why it ended before its budget was spent; empty if it did not.
    """

    rounds: int = 0
    cost: Cost = field(default_factory=Cost)
    seconds: float = 0.0
    curve: list[tuple[int, float]] = field(default_factory=list)
    words: list[tuple[int, float]] = field(default_factory=list)
    ended: str = ""

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        row = {"rounds": self.rounds, **asdict(self.cost), "minutes": round(self.seconds / 60, 3)}
        points = {"curve": self.curve, "words": self.words}
        return (
            row | {name: [[p, round(n, 5)] for p, n in each] for name, each in points.items()} | {"ended": self.ended}
        )


def learn(crowd: Crowd, method: Method, budget: Budget, checkpoint: Path | None = None, say: Say = print) -> Run:
    """Run rounds until the budget is spent; return the curve.

    1. A checkpoint of the same run, if there is one, is gone on from.
    2. After every evaluation of the development split a checkpoint is written, whole or not at all.
    3. A run whose loss has doubled there ends: nothing of it is worth transcribing.
    4. `finish` makes the model the one that is judged, and its loss is the curve's last point.
    """
    run = _resumed(method, checkpoint)
    if run is None:
        run = Run()
        _evaluate(run, crowd, budget)
    while not _spent(run, budget):
        began = time.perf_counter()
        try:
            run.cost += method.round(run.rounds + 1)
        except ZOError as error:
            run.ended = f"round {run.rounds + 1}: {error}"
            break
        run.rounds += 1
        run.seconds += time.perf_counter() - began
        if run.cost.passes * budget.points >= budget.passes * len(run.curve) and not _spent(run, budget):
            _evaluate(run, crowd, budget)
            say(f"round {run.rounds}, {run.cost.passes:,} passes, {run.seconds:.0f} s: loss {run.curve[-1][1]:.4f}")
            if not run.curve[-1][1] <= MOST_RISE * run.curve[0][1]:  # NaN, too
                run.ended = f"round {run.rounds}: the loss rose from {run.curve[0][1]:.3g} to {run.curve[-1][1]:.3g}"
                break
            _keep(run, method, checkpoint)
    method.finish()
    _evaluate(run, crowd, budget)
    return run


def _evaluate(run: Run, crowd: Crowd, budget: Budget) -> None:
    run.curve.append((run.cost.passes, crowd.dev_loss()))
    if budget.words:
        run.words.append((run.cost.passes, crowd.judge(crowd.dev).wer))


def _spent(run: Run, budget: Budget) -> bool:
    return run.cost.passes >= budget.passes or (budget.minutes > 0 and run.seconds >= 60 * budget.minutes)


def _keep(run: Run, method: Method, checkpoint: Path | None) -> None:
    if checkpoint is None:
        return
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    temporary = checkpoint.with_suffix(".tmp")
    torch.save({"run": {**asdict(run), "cost": asdict(run.cost)}, "method": method.state()}, temporary)
    os.replace(temporary, checkpoint)


def _resumed(method: Method, checkpoint: Path | None) -> Run | None:
    if checkpoint is None or not checkpoint.exists():
        return None
    found = torch.load(checkpoint, weights_only=True)
    method.restore(found["method"])
    return Run(**{**found["run"], "cost": Cost(**found["run"]["cost"])})


def passes_to(curve: list[list[float]], loss: float) -> float | None:
    """Return passes at which a curve first reaches a number, interpolated; None if it never does."""
    for (before, high), (after, low) in zip(curve, curve[1:], strict=False):
        if low <= loss < high:
            return before + (after - before) * (high - loss) / (high - low)
    return None
