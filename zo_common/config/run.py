"""Run settings as a frozen dataclass; the same names in kebab-case in run-config, scenario files, command lines."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from zo_common.aggregation.robust import Aggregator, aggregator_of
from zo_common.config.sections import (
    AggregationSection,
    DataSection,
    EvaluationSection,
    FederationSection,
    MethodSection,
    ModelSection,
    PrivacySection,
    SimulationSection,
)
from zo_common.config.setting import Bound, Setting, kebab, settings_of
from zo_common.errors import ConfigError, UnknownSetting
from zo_common.estimator.settings import EstimatorConfig
from zo_common.lattice.trained import AUTO
from zo_common.paths import home_expanded
from zo_common.privacy.mechanism import PrivacySettings, check_run
from zo_common.secure_sum.terms import check_policy

__all__ = ["CHOICES", "ENGINE_SETTINGS", "SETTINGS", "RunConfig", "kebab"]
MOST_MESSAGE_BYTES = 60 << 20
TRACKERS = ("tensorboard", "wandb", "mlflow")
"""Built-in values of `report-to`."""
RENAMED = {"noise-check": "loss-check"}
"""Settings of earlier releases → what they are called now."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunConfig(
    SimulationSection,
    EvaluationSection,
    FederationSection,
    PrivacySection,
    AggregationSection,
    MethodSection,
    ModelSection,
    DataSection,
):
    """One federated run. Learning rates are for the *mean* over queries (ZO-ASR's published ones are for the sum).

    Raises:
        ConfigError: a value out of range; says what was got, what is expected and where to look.
    """

    def __post_init__(self) -> None:
        for name in PATHS:
            object.__setattr__(self, name, home_expanded(getattr(self, name)))
        for name, options in CHOICES.items():
            if getattr(self, name) not in options:
                raise ConfigError(f"{kebab(name)} is {getattr(self, name)!r}, expected one of {', '.join(options)}")
        self._check_step()
        self._check_bounds()
        self._check_trackers()
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
        self._check_tensors()
        self._check_policy()
        self._check_aggregation()
        _ = self.estimator_config
        if (settings := self.privacy_settings) is not None:
            check_run(settings, self.directions, self.weighting, self.evaluate_on)

    def _check_trackers(self) -> None:
        for name in self.trackers:
            if name not in TRACKERS and ":" not in name:
                known = ", ".join(TRACKERS)
                raise ConfigError(
                    f"report-to is {self.report_to!r}, expected none, or of {known} and module:Class one or more, with "
                    "commas between them"
                )

    def _check_step(self) -> None:
        if not (math.isfinite(self.clip_utterances) and (self.clip_utterances == 0 or self.clip_utterances >= 1)):
            raise ConfigError(
                f"clip-utterances is {self.clip_utterances}, expected at least 1, such as 3, or 0 for off"
            )
        if self.learning_rate != "auto":
            if isinstance(self.learning_rate, str):
                raise ConfigError(f"learning-rate is {self.learning_rate!r}, expected a number such as 1e-3, or auto")
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

    def _check_bounds(self) -> None:
        for each in SETTINGS:
            value, bound = getattr(self, each.name), each.about.bound
            if bound and isinstance(value, str):
                if value != "auto":
                    raise ConfigError(f"{each.key} is {value!r}, expected 'auto' or a number")
            elif not _within(value, bound):
                expected = "a positive number" if bound == "above 0" else bound
                raise ConfigError(f"{each.key} is {value}, expected {expected}")

    def _check_tensors(self) -> None:
        if self.trained_tensors == AUTO and self.frozen_precision != "float32":
            raise ConfigError(
                f"frozen-precision is {self.frozen_precision!r} with trained-tensors=auto, which measures all tensors "
                "in float32: name a preset, such as trained-tensors=encoder-decoder-bias"
            )
        if self.trained_tensors == AUTO and self.objective in ("suta", "entropy"):
            raise ConfigError(
                f"trained-tensors is 'auto' with objective {self.objective!r}, whose curvature is no Fisher matrix: "
                "name a preset, such as trained-tensors=encoder-norm"
            )

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

    @property
    def needs_text(self) -> bool:
        """Whether devices need transcripts of their recordings."""
        return self.objective == "supervised"

    @property
    def trackers(self) -> tuple[str, ...]:
        """The names in `report-to`, each once; empty for "none"."""
        names = [name.strip() for name in self.report_to.split(",")]
        return () if names == ["none"] else tuple(dict.fromkeys(names))

    @property
    def reading(self) -> dict[str, Any]:
        """Options of the model's audio and text processor."""
        return {"language": self.language, "fold_accents": self.fold_accents}

    @property
    def estimator_config(self) -> EstimatorConfig:
        """The estimator's settings; epsilon is 0 if each device chooses its own."""
        return EstimatorConfig(self.estimator, self.num_queries, 0.0 if self.epsilon == "auto" else self.epsilon)

    @property
    def privacy_settings(self) -> PrivacySettings | None:
        """The run's privacy guarantee; None if `privacy` is "none"."""
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
        """Rule by which a round's replies become coefficients."""
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
        """Whether devices send the curvature; with privacy the server measures it on its own speech."""
        return self.learning_rate == "auto" and self.privacy == "none"

    def learning_rate_at(self, server_round: int) -> float:
        """Return the learning rate of a round, 1 … num_server_rounds; it falls unless the schedule is "constant".

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
        """Return settings from kebab-case (or snake_case) keys, as `context.run_config` or a TOML table give them.

        Earlier names are taken with a word on the log.

        Raises:
            ConfigError: an unknown key, with the nearest valid name, one given twice, or a value of the wrong type.
        """
        hints = get_type_hints(cls)
        chosen: dict[str, Any] = {}
        for given, value in values.items():
            key = todays_name(given)
            name = key.replace("-", "_")
            if name in chosen:
                raise ConfigError(f"{given} is set though {kebab(name)} is: leave one of them out")
            if name not in hints:
                raise UnknownSetting(f"unknown setting {key[:100]!r}: {_hint(kebab(key[:100]))}")
            chosen[name] = _convert(key, value, hints[name])
        return cls(**chosen)

    def to_mapping(self) -> dict[str, Any]:
        """Kebab-case keys and plain values."""
        return {kebab(name): value for name, value in asdict(self).items()}


SETTINGS: tuple[Setting, ...] = tuple(settings_of(RunConfig))
CHOICES: dict[str, tuple[str, ...]] = {each.name: each.choices for each in SETTINGS if each.choices}
PATHS = tuple(each.name for each in SETTINGS if each.about.path)
ENGINE_SETTINGS = tuple(each.name for each in SETTINGS if each.about.engine)


def todays_name(key: str) -> str:
    """Return the present name of a setting; a warning reports one of an earlier release."""
    new = RENAMED.get(key.replace("_", "-"))
    if new is None:
        return key
    _tell_new_name(key, new)
    return new


@cache  # settings are read several times on their way to a run
def _tell_new_name(key: str, new: str) -> None:
    logger.warning(f"{key} is called {new} now, and is taken as that: rename it in your settings")


def _within(value: Any, bound: Bound) -> bool:
    match bound:
        case "at least 1":
            return bool(value >= 1)
        case "at least 0":
            return bool(value >= 0)
        case "above 0":
            return math.isfinite(value) and value > 0
        case "0 … 1":
            return bool(0 <= value <= 1)
        case "0 … 4096":
            return bool(0 <= value <= 4096)
    return True


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


def _hint(key: str) -> str:
    """Return what is meant by an unknown key: the settings that have all of its words, or else the nearest one."""
    known = [each.key for each in SETTINGS]
    words = set(key.split("-"))
    near = [name for name in known if words <= set(name.split("-"))]
    near = near or difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else f"known keys are {', '.join(known)}"
