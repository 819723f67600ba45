"""The settings of the attacks: those of an ordinary run, with weights held at the base model's."""

from __future__ import annotations

from dataclasses import dataclass

from simulations.models.pretrain_ctc import PRETRAINED
from zo_common.config.run import RunConfig
from zo_common.estimator.settings import EstimatorConfig


@dataclass(frozen=True)
class Settings:
    """One experiment.

    Attributes:
        model, trained_tensors, estimator, queries, epsilon: as in a run.
        accent: of all speech; voices and sentences are drawn in turn.
        pool: utterances that stand for the population; a seed has its own.
        rounds: of one step, each along directions of its own, all measured at the base model's weights.
        utterances: of a device, drawn from the pool with replacement, so that 64 devices can have different ones.
        batch: of them in a step.
        cohorts: devices whose sum alone is seen.
        trials: devices with, and as many without, each utterance of the pool.
        candidates: sentences to guess among; each is in the pool, and read by another voice beside it.
        targets: how many of them are guessed by who has the recording.
        sizes: utterances of the device in guessing; each takes part in every step.
        draws: devices of each size for each target.
        target_epsilons, delta: of the guarantees.
    """

    model: str = str(PRETRAINED / "wav2vec2-tiny-us")
    trained_tensors: str = "encoder-early"
    accent: str = "west-midlands"
    pool: int = 96
    rounds: int = 6
    queries: int = 8
    epsilon: float = 1e-3
    utterances: int = 48
    batch: int = 16
    cohorts: tuple[int, ...] = (8, 64)
    trials: int = 12
    candidates: int = 50
    targets: int = 16
    sizes: tuple[int, ...] = (1, 4, 16)
    draws: int = 8
    target_epsilons: tuple[float, ...] = (8.0, 2.0)
    delta: float = 1e-6

    @property
    def estimator(self) -> EstimatorConfig:
        """The default one of a run."""
        return EstimatorConfig("leave-one-out", self.queries, self.epsilon)

    @property
    def config(self) -> RunConfig:
        """Arguments of an engine."""
        return RunConfig(
            model=self.model,
            trained_tensors=self.trained_tensors,
            epsilon=self.epsilon,
            num_queries=self.queries,
            batch_size=self.batch,
            directions="shared",
            loss_check=False,
            device="cpu",
            precision="float32",
        )
