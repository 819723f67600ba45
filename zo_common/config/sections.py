"""The sections of a run's settings. Each field's metadata is the single source of its documentation and checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from zo_common.aggregation.mean import Weighting
from zo_common.aggregation.robust import Aggregation
from zo_common.config.setting import setting
from zo_common.directions.seeds import Directions
from zo_common.estimator.settings import Estimator
from zo_common.lattice.grid import Scale
from zo_common.lattice.trained import DEFAULT
from zo_common.privacy.mechanism import NoiseBy, Privacy

Schedule = Literal["auto", "constant", "linear", "cosine"]
Place = Literal["server", "clients"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
FrozenPrecision = Literal["auto", "float32", "bfloat16", "float16", "int8"]
Auto = Literal["auto"]
Objective = Literal["supervised", "suta", "entropy", "self-training"]


@dataclass(frozen=True)
class DataSection:
    """The recordings that devices train on."""

    data: str = setting(
        "",
        "Folder of recordings in one of the layouts of [data.md](data.md), a table of them, or a hub id.",
        "free",
        app_default="data",
        path=True,
    )
    train_split: str = setting("train", "Split that devices train on.", "fixed")
    text_column: str = setting("transcription", "Column of the table that holds the transcripts.", "fixed")
    language: str = setting("en", "Language of the speech, as the model's tokenizer names it.", "fixed", engine=True)
    fold_accents: bool = setting(
        False,
        "Whether letters that a CTC model's vocabulary lacks are trained without their accents (é → e).",
        "fixed",
    )
    partition_by: str = setting(
        "speaker",
        "How a simulation shares the recordings out: a column, `round-robin`, `iid`, `dirichlet:COLUMN:ALPHA` or "
        "`shard:COLUMN`.",
        "fixed",
    )
    skip_bad: bool = setting(
        False, "Whether recordings that cannot be used are left out and counted instead of stopping the run.", "free"
    )
    feature_cache: str = setting(
        "",
        "Folder that keeps computed features on disk; empty keeps them in memory alone.",
        "free",
        quiet=True,
        path=True,
    )


@dataclass(frozen=True)
class ModelSection:
    """The base model, the tensors that are trained, and how devices compute."""

    model: str = setting(
        "",
        "Hub id or directory of the base model; its weights must stay the same.",
        "free",
        engine=True,
        app_default="openai/whisper-tiny.en",
        path=True,
    )
    trained_tensors: str = setting(
        DEFAULT,
        "Preset or pattern of tensor names; `auto` lets a calibration choose before round 1.",
        "fixed",
        engine=True,
    )
    scale: Scale = setting(
        "unit-wide", "Scale of a direction in each tensor, and the width of its range.", "fixed", engine=True
    )
    tail_tokens: int | Auto = setting(
        "auto",
        "Encoder tokens that replace the silent rest of Whisper's window; `auto` lets each device choose.",
        "free",
        engine=True,
        bound="at least 0",
    )
    device: str = setting(
        "auto", "Torch device: `cpu`, `cuda` or `auto`, CUDA where there is one.", "free", engine=True
    )
    precision: Precision = setting("auto", "Number format of the forward passes.", "free", engine=True)
    frozen_precision: FrozenPrecision = setting(
        "float32",
        "Number format in which weights that are not trained are held; `auto` takes bfloat16 where the loss check "
        "allows it, `int8` needs the extra `int8`.",
        "free",
        engine=True,
    )
    loss_check: bool = setting(
        True,
        "Whether a device compares its loss with the full window's in float32 before it first trains.",
        "free",
        engine=True,
    )
    torch_compile: bool = setting(False, "Whether `torch.compile` compiles the model's layers.", "free", engine=True)
    torch_threads: int = setting(
        0, "CPU threads of a process; 0 takes torch's choice.", "free", quiet=True, bound="0 … 4096"
    )


@dataclass(frozen=True)
class MethodSection:
    """The objective and its zeroth-order estimate."""

    objective: Objective = setting(
        "supervised", "Loss that is minimised; all but `supervised` need no transcripts.", "fixed", engine=True
    )
    temperature: float = setting(
        2.5, "Temperature of the softmax in objectives without transcripts.", "fixed", engine=True, bound="above 0"
    )
    entropy_weight: float = setting(
        0.3, "Share of the entropy in `suta`; the rest is class confusion.", "fixed", engine=True, bound="0 … 1"
    )
    min_confidence: float = setting(
        0.0, "Least confidence of a hypothesis that `self-training` learns from.", "fixed", engine=True, bound="0 … 1"
    )
    estimator: Estimator = setting("leave-one-out", "How losses become projected gradients.", "fixed")
    num_queries: int = setting(8, "Directions of a local step, 1 … 65535 (`leave-one-out`: from 2).", "fixed")
    epsilon: float | Auto = setting(
        "auto",
        "Size of the perturbation in units of a tensor's scale; `auto` lets each device choose.",
        "fixed",
        engine=True,
        bound="above 0",
    )
    learning_rate: float | Auto = setting(
        "auto", "Learning rate for the mean over queries; `auto` measures it in every round.", "free", bound="above 0"
    )
    lr_schedule: Schedule = setting(
        "auto", "Course of a learning rate that is a number; `auto` falls linearly to zero.", "free"
    )
    batch_size: int = setting(4, "Utterances of a local step, at most 65535.", "fixed", bound="at least 1")
    clip_utterances: float = setting(
        3.0,
        "Multiple of the batch's median norm that an utterance's scalars are cut to, at least 1; 0 is off.",
        "fixed",
        engine=True,
    )
    local_steps: int = setting(1, "Local steps of a round, at most 65535.", "fixed", bound="at least 1")
    directions: Directions = setting(
        "independent", "Whether each device has its own directions, or all share those of the round.", "fixed"
    )


@dataclass(frozen=True)
class AggregationSection:
    """Aggregation of a round's replies, robust rules and secure aggregation."""

    weighting: Weighting = setting(
        "examples", "Whether a device counts by its number of utterances, or all count alike.", "fixed"
    )
    aggregation: Aggregation = setting(
        "mean",
        "Rule that makes the update; all but `mean` need uniform weighting, most of them shared directions.",
        "fixed",
    )
    byzantine_share: float = setting(
        0.25, "Share of a round's devices that may be hostile, 0 … 0.49, for the robust rules.", "free"
    )
    norm_bound: float = setting(0.0, "Bound of `norm-clipping`; 0 takes the round's median norm.", "free")
    secure_aggregation: bool = setting(
        False, "Whether devices mask replies so that the server sees only sums.", "fixed"
    )
    secure_threshold: float = setting(
        0.6667, "Share of the masking devices that must stay for the sum to be known, 0.5 to below 1.", "fixed"
    )
    secure_neighbours: int = setting(
        0, "Devices that each one masks with, an even number from 4; 0 takes all.", "fixed"
    )


@dataclass(frozen=True)
class PrivacySection:
    """Differential privacy of what devices send."""

    privacy: Privacy = setting("none", "What differential privacy protects: an utterance or a device.", "fixed")
    target_epsilon: float = setting(8.0, "Maximum ε that the run may spend.", "fixed")
    target_delta: float = setting(1e-6, "δ at which ε is computed.", "fixed")
    clip_norm: float = setting(
        20.0,
        "Maximum Euclidean norm of an utterance's scalars, or a device's reply. The default is about the usual norm "
        "of 8 scalars of an utterance with Whisper-tiny.en.",
        "fixed",
    )
    noise_multiplier: float = setting(
        0.0, "Standard deviation of the noise ÷ `clip-norm`; 0 takes the least for the target.", "fixed"
    )
    noise_by: NoiseBy = setting("devices", "Who adds the noise of device-level privacy.", "fixed")


@dataclass(frozen=True)
class FederationSection:
    """Rounds, devices, and the files of a run."""

    run_seed: int = setting(0, "Seed of all random choices, 0 … 2⁶³ − 1.", "fixed")
    num_server_rounds: int = setting(40, "Total number of training rounds.", "free", bound="at least 1")
    min_clients: int = setting(1, "Devices that must be connected to start.", "free", bound="at least 1")
    clients_per_round: int = setting(0, "Answers that a round needs; 0 asks all devices.", "free", bound="at least 0")
    over_selection: float = setting(
        0.0, "Share of devices asked beyond `clients-per-round`, 0 … 10; the round closes at the target.", "free"
    )
    min_replies: int = setting(
        1, "Valid replies below which a round is recorded as empty and counts as bad.", "free", bound="at least 1"
    )
    max_bad_rounds: int = setting(3, "Bad rounds in a row that stop the run.", "free", bound="at least 1")
    message_bytes: int = setting(
        8 << 20, "Maximum bytes of ledger in one message to a device that is behind, 1024 … 62914560.", "free"
    )
    round_timeout: float = setting(
        600.0, "Seconds until a round closes with the replies it has.", "free", bound="above 0"
    )
    max_scalar: float = setting(1e6, "Largest projected gradient of a valid reply.", "free", bound="above 0")
    server_model: bool = setting(True, "Whether the server holds the model or only relays scalars.", "free")
    final_sync: bool = setting(False, "Whether all devices receive the last round's update in the end.", "free")
    resume: bool = setting(False, "Whether the run continues the ledger in `output`.", "free", quiet=True)
    output: str = setting(
        "results/run",
        "Folder of the ledger, the logs and the model.",
        "free",
        app_default="results/flwr-run",
        quiet=True,
        path=True,
    )


@dataclass(frozen=True)
class EvaluationSection:
    """Evaluation on held-out speech, and the guard that undoes bad rounds."""

    eval_split: str = setting("", "Held-out split that results are reported on; empty evaluates nothing.", "free")
    evaluate_every: int = setting(
        0, "Rounds between evaluations; 0 evaluates at the start and the end.", "free", bound="at least 0"
    )
    eval_utterances: int = setting(
        0, "Utterances decoded by evaluations between the first and the last.", "free", bound="at least 0"
    )
    evaluate_on: Place = setting("server", "Whose held-out speech is evaluated.", "free")
    guard_split: str = setting(
        "",
        "Split that the guard checks, of the server or the devices; `none` turns it off, and empty lets a supervised "
        "run take `dev`, `validation`, `valid` or `eval-split`.",
        "free",
    )
    guard_every: int = setting(4, "Rounds between the guard's checks.", "free", bound="at least 1")
    guard_utterances: int = setting(32, "Utterances of a check; 0 uses all.", "free", bound="at least 0")
    guard_tolerance: float = setting(
        0.05, "How much worse a check may be in a run without transcripts.", "free", bound="0 … 1"
    )
    report_to: str = setting(
        "none",
        "Experiment trackers that the server reports to: `none`, or `tensorboard`, `wandb`, `mlflow` and "
        "`module:Class` of your own, with commas between several.",
        "free",
    )


@dataclass(frozen=True)
class SimulationSection:
    """Faults that a simulation adds."""

    drop_out: float = setting(0.0, "Share of replies that are lost, from 0 to below 1.", "free")
    late_joiners: int = setting(0, "Devices that take part only from `late-round` on.", "free", bound="at least 0")
    late_round: int = setting(0, "First round of the late devices.", "free", bound="at least 0")
