"""Run settings as a frozen dataclass; the same names in kebab-case in run-config, scenario files, command lines."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from zo_common.aggregation.mean import Weighting
from zo_common.aggregation.robust import AGGREGATIONS, Aggregation, Aggregator, aggregator_of
from zo_common.directions.seeds import Directions
from zo_common.errors import ConfigError
from zo_common.estimator.settings import Estimator, EstimatorConfig
from zo_common.lattice.grid import Scale
from zo_common.lattice.trained import AUTO, DEFAULT
from zo_common.privacy.mechanism import NoiseBy, Privacy, PrivacySettings, check_run
from zo_common.secure_sum.terms import check_policy

Schedule = Literal["auto", "constant", "linear", "cosine"]
Place = Literal["server", "clients"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
Auto = Literal["auto"]
Objective = Literal["supervised", "suta", "entropy", "self-training"]
MOST_MESSAGE_BYTES = 60 << 20


@dataclass(frozen=True)
class RunConfig:
    """One federated run. Learning rates are for the *mean* over queries (ZO-ASR's published ones are for the sum).

    Raises:
        ConfigError: a value out of range; says what was got, what is expected and where to look.
    """

    # model and data
    model: str = ""
    data: str = ""
    train_split: str = "train"
    eval_split: str = ""
    text_column: str = "transcription"
    language: str = "en"
    partition_by: str = "speaker"
    skip_bad: bool = False
    # method; what is minimised, and what objectives without transcripts need
    objective: Objective = "supervised"
    temperature: float = 2.5
    entropy_weight: float = 0.3
    min_confidence: float = 0.0
    trained_tensors: str = DEFAULT  # or "auto": chosen by a calibration before round 1
    scale: Scale = "unit-wide"
    estimator: Estimator = "leave-one-out"
    num_queries: int = 8
    epsilon: float | Auto = "auto"
    learning_rate: float | Auto = "auto"  # measured in every round
    lr_schedule: Schedule = "auto"  # of a number: linear; what is measured needs none
    batch_size: int = 4
    clip_utterances: float = 3.0  # median norms of the batch that an utterance's scalars are cut to; 0 is off
    local_steps: int = 1
    directions: Directions = "independent"
    weighting: Weighting = "examples"
    secure_aggregation: bool = False
    secure_threshold: float = 0.6667
    secure_neighbours: int = 0
    aggregation: Aggregation = "mean"
    byzantine_share: float = 0.25
    norm_bound: float = 0.0
    tail_tokens: int | Auto = "auto"
    device: str = "auto"
    precision: Precision = "auto"
    loss_check: bool = True
    torch_compile: bool = False
    # privacy of what devices send
    privacy: Privacy = "none"
    target_epsilon: float = 8.0
    target_delta: float = 1e-6
    clip_norm: float = 100.0
    noise_multiplier: float = 0.0
    noise_by: NoiseBy = "devices"
    # federation
    run_seed: int = 0
    num_server_rounds: int = 40
    min_clients: int = 1
    clients_per_round: int = 0
    over_selection: float = 0.0
    min_replies: int = 1
    max_bad_rounds: int = 3
    message_bytes: int = 8 << 20
    round_timeout: float = 600.0
    max_scalar: float = 1e6
    evaluate_every: int = 0
    eval_utterances: int = 0
    evaluate_on: Place = "server"
    guard_split: str = ""
    guard_every: int = 4
    guard_utterances: int = 32
    guard_tolerance: float = 0.05
    server_model: bool = True
    final_sync: bool = False
    resume: bool = False
    output: str = "results/run"
    drop_out: float = 0.0
    late_joiners: int = 0
    late_round: int = 0
    torch_threads: int = 0
    feature_cache: str = ""

    def __post_init__(self) -> None:
        for name, options in CHOICES.items():
            if getattr(self, name) not in options:
                raise ConfigError(f"{kebab(name)} is {getattr(self, name)!r}, expected one of {', '.join(options)}")
        for name in _AT_LEAST_ONE:
            self._at_least(name, 1)
        for name in _AT_LEAST_NONE:
            self._at_least(name, 0)
        for name in ("round_timeout", "max_scalar", "temperature"):
            self._positive(name)
        self._check_step()
        for name in ("entropy_weight", "min_confidence", "guard_tolerance"):
            self._share(name)
        if not 0 <= self.run_seed < 1 << 63:
            raise ConfigError(f"run-seed is {self.run_seed}, expected 0 … 2**63 − 1")
        if not 1024 <= self.message_bytes <= MOST_MESSAGE_BYTES:
            raise ConfigError(
                f"message-bytes is {self.message_bytes}, expected 1024 … {MOST_MESSAGE_BYTES}, what a worker takes"
            )
        if not 0 <= self.drop_out < 1:
            raise ConfigError(f"drop-out is {self.drop_out}, expected a share of clients in [0, 1)")
        if max(self.local_steps, self.batch_size) > 65535:
            raise ConfigError("local-steps and batch-size are at most 65535")
        self._check_chosen()
        self._check_tensors()
        self._check_policy()
        self._check_aggregation()
        _ = self.estimator_config
        if (settings := self.privacy_settings) is not None:
            check_run(settings, self.directions, self.weighting, self.evaluate_on)

    def _check_step(self) -> None:
        if not (math.isfinite(self.clip_utterances) and (self.clip_utterances == 0 or self.clip_utterances >= 1)):
            raise ConfigError(
                f"clip-utterances is {self.clip_utterances}, expected at least 1, such as 3, or 0 for off"
            )
        if self.learning_rate != "auto":
            if isinstance(self.learning_rate, str):
                raise ConfigError(f"learning-rate is {self.learning_rate!r}, expected a number such as 1e-3, or auto")
            self._positive("learning_rate")
            return
        if self.lr_schedule not in ("auto", "constant"):
            raise ConfigError(
                f"lr-schedule is {self.lr_schedule!r} with learning-rate=auto, expected auto: the step is measured in "
                "every round; leave lr-schedule out, or set learning-rate to a number"
            )
        if self.objective in ("suta", "entropy"):
            raise ConfigError(
                f"learning-rate is 'auto' with objective {self.objective!r}, whose curvature is no Fisher matrix: set "
                "a number, such as learning-rate=0.1"
            )
        if self.aggregation == "sign-vote":
            raise ConfigError(
                "learning-rate is 'auto' with aggregation 'sign-vote', whose steps have one size, the learning rate: "
                "set a number"
            )

    def _positive(self, name: str) -> None:
        value = getattr(self, name)
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{kebab(name)} is {value}, expected a positive number")

    def _check_chosen(self) -> None:
        if isinstance(self.tail_tokens, str):
            self._word("tail_tokens")
        else:
            self._at_least("tail_tokens", 0)
        if isinstance(self.epsilon, str):
            self._word("epsilon")
        else:
            self._positive("epsilon")

    def _check_tensors(self) -> None:
        if self.trained_tensors == AUTO and self.objective in ("suta", "entropy"):
            raise ConfigError(
                f"trained-tensors is 'auto' with objective {self.objective!r}, whose curvature is no Fisher matrix: "
                "name a preset, such as trained-tensors=encoder-norm"
            )

    def _word(self, name: str) -> None:
        if getattr(self, name) != "auto":
            raise ConfigError(f"{kebab(name)} is {getattr(self, name)!r}, expected 'auto' or a number")

    def _share(self, name: str) -> None:
        if not 0 <= getattr(self, name) <= 1:
            raise ConfigError(f"{kebab(name)} is {getattr(self, name)}, expected 0 … 1")

    def _check_policy(self) -> None:
        check_policy(self.secure_threshold, self.secure_neighbours)
        if self.secure_aggregation and (self.directions != "shared" or self.evaluate_on != "server"):
            raise ConfigError(
                f"secure-aggregation needs directions=shared and evaluate-on=server, got {self.directions} and "
                f"{self.evaluate_on}: sums exist along common directions only, and error counts are each device's own"
            )
        if not 0 <= self.over_selection <= 10:
            raise ConfigError(
                f"over-selection is {self.over_selection}, expected 0 … 10, the share asked beyond the target"
            )
        if self.over_selection and not self.clients_per_round:
            raise ConfigError("over-selection asks more devices than the target: set clients-per-round, the target")
        if self.clients_per_round and self.min_replies > self.clients_per_round:
            raise ConfigError(
                f"min-replies is {self.min_replies}, clients-per-round {self.clients_per_round}: no round could count"
            )

    def _check_aggregation(self) -> None:
        for name, active in (("privacy", self.privacy != "none"), ("secure-aggregation", self.secure_aggregation)):
            if active and self.aggregation != "mean":
                raise ConfigError(
                    f"aggregation is {self.aggregation!r} with {name}, expected 'mean': what the noise hides, or the "
                    "sum of a cohort alone, is counted on for each device's share of a mean"
                )
        least = self.aggregator.least_replies
        if self.min_replies < least:
            raise ConfigError(
                f"min-replies is {self.min_replies}, aggregation {self.aggregation!r} with byzantine-share "
                f"{self.byzantine_share} needs {least}: set min-replies={least}"
            )

    def _at_least(self, name: str, least: int) -> None:
        if getattr(self, name) < least:
            raise ConfigError(f"{kebab(name)} is {getattr(self, name)}, expected at least {least}")

    @property
    def needs_text(self) -> bool:
        """Whether devices must know what was said in their recordings."""
        return self.objective == "supervised"

    @property
    def estimator_config(self) -> EstimatorConfig:
        """The estimator's part of the settings; its epsilon is 0 where each device chooses its own."""
        return EstimatorConfig(self.estimator, self.num_queries, 0.0 if self.epsilon == "auto" else self.epsilon)

    @property
    def privacy_settings(self) -> PrivacySettings | None:
        """What the run promises; None where `privacy` is "none"."""
        if self.privacy == "none":
            return None
        return PrivacySettings(
            self.privacy,
            self.target_epsilon,
            self.target_delta,
            self.clip_norm,
            self.noise_multiplier,
            self.noise_by,
        )

    @property
    def aggregator(self) -> Aggregator:
        """How a round's replies become coefficients."""
        return aggregator_of(
            self.aggregation,
            shared=self.directions == "shared",
            weighting=self.weighting,
            byzantine_share=self.byzantine_share,
            norm_bound=self.norm_bound,
            local_steps=self.local_steps,
        )

    @property
    def measures_curvature(self) -> bool:
        """Whether devices are asked for the curvature: with privacy the server measures it on its own speech."""
        return self.learning_rate == "auto" and self.privacy == "none"

    def learning_rate_at(self, server_round: int) -> float:
        """The learning rate of a round, 1 … num_server_rounds, falling towards zero unless the schedule is "constant".

        Raises:
            ConfigError: the learning rate is measured in the round.
        """
        if self.learning_rate == "auto":
            raise ConfigError(
                "learning-rate is 'auto', expected a number here: it is measured by devices in each round"
            )
        done = (server_round - 1) / self.num_server_rounds
        if self.lr_schedule == "constant":
            return self.learning_rate
        if self.lr_schedule == "cosine":
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
        return self.learning_rate * (1 - done)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> RunConfig:
        """Settings from kebab-case (or snake_case) keys, as `context.run_config` or a TOML table give them.

        Raises:
            ConfigError: an unknown key, with the nearest valid name, or a value of the wrong type.
        """
        hints = get_type_hints(cls)
        chosen: dict[str, Any] = {}
        for key, value in values.items():
            name = key.replace("-", "_")
            if name not in hints:
                known = [kebab(f.name) for f in fields(cls)]
                near = difflib.get_close_matches(key[:100].replace("_", "-"), known, n=1, cutoff=0.4)
                hint = f"did you mean {near[0]!r}?" if near else f"known keys are {', '.join(known)}"
                raise ConfigError(f"unknown setting {key[:100]!r}: {hint}")
            chosen[name] = _convert(key, value, hints[name])
        return cls(**chosen)

    def to_mapping(self) -> dict[str, Any]:
        """Kebab-case keys and plain values."""
        return {kebab(name): value for name, value in asdict(self).items()}


_AT_LEAST_ONE = (
    "num_server_rounds",
    "local_steps",
    "batch_size",
    "min_clients",
    "min_replies",
    "max_bad_rounds",
    "guard_every",
)
_AT_LEAST_NONE = (
    "clients_per_round",
    "evaluate_every",
    "eval_utterances",
    "late_joiners",
    "guard_utterances",
)
CHOICES: dict[str, tuple[str, ...]] = {
    "objective": get_args(Objective),
    "scale": get_args(Scale),
    "estimator": get_args(Estimator),
    "lr_schedule": get_args(Schedule),
    "directions": get_args(Directions),
    "weighting": get_args(Weighting),
    "aggregation": AGGREGATIONS,
    "precision": get_args(Precision),
    "privacy": get_args(Privacy),
    "noise_by": get_args(NoiseBy),
    "evaluate_on": get_args(Place),
}


def kebab(name: str) -> str:
    """`num_queries` → `num-queries`."""
    return name.replace("_", "-")


def _convert(key: str, value: Any, kind: Any) -> Any:
    if get_origin(kind) is Union:  # a number or a word
        number = get_args(kind)[0]
        if isinstance(value, str):
            return value
        return _convert(key, value, number)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < 1 << 1000 else math.inf
    expected = kind if kind in (int, float, bool, str) else str
    if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
        raise ConfigError(f"{key} is {value!r:.200} ({type(value).__name__}), expected {expected.__name__}")
    return value
