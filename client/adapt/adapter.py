"""Test-time adaptation of a recogniser to the audio it recognises: transcripts before and after, and a record."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from client.adapt.drift_guard import DriftBounds, DriftGuard
from client.adapt.file import AdaptationFile, replay_file
from client.adapt.pieces import episode, listen, objective_of
from client.adapt.record import AdaptationRecord, Layout, undo
from client.adapt.steps import Plateau, adapt
from zo_common.directions.seeds import fold_in
from zo_common.errors import ConfigError, WrongBaseModel
from zo_common.estimator.settings import Estimator, EstimatorConfig
from zo_common.estimator.step import LossFn
from zo_common.lattice.fingerprint import fingerprint
from zo_common.lattice.grid import Scale
from zo_common.lattice.state import LatticeState
from zo_common.models.compute import resolve_precision
from zo_common.models.ctc.loss import SutaSettings
from zo_common.models.load import LoadedModel
from zo_common.speech.audio import is_silent
from zo_common.speech.long_audio import refuse_short, split
from zo_common.speech.loss_settings import LossSettings
from zo_common.speech.model_kinds import speech_model
from zo_common.speech.speech_model import Transcript, Wave

Precision = Literal["float32", "auto", "bfloat16", "float16"]
STEP_SECONDS = 60.0  # of audio that one step measures


@dataclass(frozen=True)
class Defaults:
    """Default settings of a kind of model; see `AdaptSettings`."""

    trained_tensors: str
    learning_rate: float
    epsilon: float
    steps: int


# for scale "rms", chosen with benchmarks.tta.study on other voices than docs/results/adaptation.md reports
DEFAULTS: dict[str, Defaults] = {
    "CTC": Defaults("norms+biases", learning_rate=0.2, epsilon=1e-2, steps=40),
    "Whisper": Defaults("encoder-norm", learning_rate=3e-2, epsilon=1e-2, steps=20),
}


@dataclass(frozen=True)
class AdaptSettings:
    """Settings of an adaptation; empty or None means the default of the model's kind.

    Attributes:
        steps: maximum for each utterance.
        num_queries, estimator, epsilon: see `zo_common.estimator.step`.
        learning_rate: for the mean over queries.
        trained_tensors, scale: see `zo_common.lattice.trained` and `zo_common.lattice.grid`.
        objective: "suta" or "entropy" for CTC models, "entropy" or "self-training" for Whisper.
        patience: steps without progress after which to stop, 0 for never.
        layout: number format of the record, and so of what is applied: "float32", "float16" or "sign".
        seed: u64 of all directions, together with the audio: the other recordings of a run do not change an adaptation.
        language: for multilingual Whisper.
        precision: of the objective's forward passes; transcripts are float32.
        suta: weights of the terms that "suta" and "entropy" of CTC models minimise.
        continual: None for episodes, in which each utterance starts from the base; bounds, for adaptations that
            accumulate over utterances.
    """

    steps: int | None = None
    num_queries: int = 8
    estimator: Estimator = "leave-one-out"
    epsilon: float | None = None
    learning_rate: float | None = None
    trained_tensors: str = ""
    scale: Scale = "rms"
    objective: str = ""
    patience: int = 10
    layout: Layout = "float32"
    seed: int = 0
    language: str = "en"
    precision: Precision = "float32"
    suta: SutaSettings = field(default_factory=SutaSettings)
    continual: DriftBounds | None = None

    def __post_init__(self) -> None:
        EstimatorConfig(self.estimator, self.num_queries, 1.0 if self.epsilon is None else self.epsilon)
        Plateau(self.patience)
        if self.steps is not None and not 0 <= self.steps <= 0xFFFF:
            raise ConfigError(f"steps is {self.steps}, expected 0 … 65535")
        rate = self.learning_rate
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            raise ConfigError(f"learning-rate is {rate}, expected a positive number")
        if not 0 <= self.seed < 1 << 64:
            raise ConfigError(f"seed is {self.seed}, expected 0 … 2**64 − 1")
        choices = (("layout", Layout), ("scale", Scale), ("precision", Precision))
        for name, choice in choices:
            if getattr(self, name) not in get_args(choice):
                raise ConfigError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(get_args(choice))}")


@dataclass(frozen=True, eq=False)
class Adaptation:
    """The result of an adaptation for one utterance.

    Attributes:
        before: transcript under the weights before the adaptation: the base's, in an episode.
        after: transcript under the adapted weights.
        record: the updates applied; without steps where there was nothing to adapt to.
        objectives: mean loss of each step.
        made_of, reached: the state of `after`, as in `AdaptationFile`.
        stopped_early: whether the objective stopped falling.
        kept: False where the drift guard returned to the base; `after` is then the base's.
        seconds: of work, for the whole group.
        note: why there was nothing to adapt to, or why the guard returned to the base.
    """

    before: str
    after: str
    record: AdaptationRecord
    objectives: tuple[float, ...] = ()
    made_of: tuple[int, ...] = ()
    reached: int = 0
    stopped_early: bool = False
    kept: bool = True
    seconds: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class _Utterance:
    pieces: list[Wave]
    transcripts: list[Transcript]


class Adapter:
    """Adaptation of one model, in place and without a copy, with an exact way back to its base.

    1. An utterance is cut into pieces of at most 30 s, of which silent ones are dropped.
    2. The pieces are transcribed, then `steps` steps lower the objective of all of them under one set of weights; of
       more than `STEP_SECONDS` each step measures the next part, and none stops early.
    3. They are transcribed again, and the record is undone: the base is back, to the bit. With `continual` the record
       stays, unless the guard finds that the weights moved too far or that all transcripts have become empty.

    Args:
        loaded: model in eval mode, on the device where it runs; its trained tensors are snapped to their lattice.

    Raises:
        ConfigError, PatternError, EpsilonTooSmall, UnsupportedModel: the settings do not fit the model.
    """

    def __init__(self, loaded: LoadedModel, settings: AdaptSettings | None = None) -> None:
        s = self.settings = settings or AdaptSettings()
        self._speech = speech_model(loaded)
        objective = objective_of(self._speech, s.objective)
        default = DEFAULTS[self._speech.name]
        self.steps = default.steps if s.steps is None else s.steps
        epsilon = default.epsilon if s.epsilon is None else s.epsilon
        self._losses = LossSettings(objective, language=s.language, suta=s.suta)
        self._estimator = EstimatorConfig(s.estimator, s.num_queries, epsilon)
        self._learning_rate = default.learning_rate if s.learning_rate is None else s.learning_rate
        self.state = LatticeState(loaded.model, s.trained_tensors or default.trained_tensors, s.scale)
        self.state.epsilon_units(epsilon)
        self.base_checksum = self.state.checksum()
        self.base_id = int(fingerprint(loaded.model)[:16], 16)
        self._precision = resolve_precision(s.precision, next(loaded.model.parameters()).device)
        self._reader = self._speech.reader(language=s.language)
        self._guard = None if s.continual is None else DriftGuard(self.state, s.continual)
        self._count = 0

    @property
    def rate(self) -> int:
        """Sampling rate in Hz of the waves."""
        return self._speech.rate

    @property
    def drift(self) -> float:
        """Distance of continual adaptation from the base (`DriftGuard.drift`); 0 between episodes."""
        return self._guard.drift() if self._guard else 0.0

    def transcribe(self, wave: Wave) -> str:
        """Return the transcript under the present weights.

        Raises:
            AudioProblem: the audio is shorter than one frame of the model.
        """
        return _text(self._listen(self._pieces(wave)))

    def adapt(self, wave: Wave, on_step: Callable[[int, float], None] | None = None) -> Adaptation:
        """Adapt to one utterance, mono float32 (n,) at `rate` Hz; see `adapt_together`."""
        return self.adapt_together([wave], on_step)[0]

    def adapt_together(
        self, waves: Sequence[Wave], on_step: Callable[[int, float], None] | None = None
    ) -> list[Adaptation]:
        """Adapt to several utterances as one: one set of weights, one record, a transcript of each.

        Args:
            on_step: called with (step, loss) after each step.

        Raises:
            AudioProblem: an utterance is shorter than one frame of the model.
            NonFiniteLoss, LatticeOverflow: a step failed.
            ChecksumMismatch: before an episode the weights are not the base's, as something else has moved them.
                After any other error the weights are as before.
        """
        started = time.perf_counter()
        if self._guard is None:
            self.state.expect_checksum(self.base_checksum)
        cut = [self._pieces(wave) for wave in waves]
        utterances = [_Utterance(pieces, self._listen(pieces)) for pieces in cut]
        applied_seeds = tuple(r.seed for r in self._guard.records) if self._guard else ()
        record, objectives = self._steps(utterances, self._seed(waves), on_step)
        before = after = [_text(u.transcripts) for u in utterances]
        made_of, reached, refused = applied_seeds, record.end, ""
        if record.steps:
            made_of = (*applied_seeds, record.seed)
            after, refused = self._finish(utterances, record, objectives[-1])
        if refused:
            made_of, reached = (), self.base_checksum
        common = Adaptation(
            "",
            "",
            record,
            objectives,
            made_of,
            reached,
            stopped_early=0 < record.steps < self.steps,
            kept=not refused,
            seconds=time.perf_counter() - started,
        )
        return [
            replace(common, before=old, after=new, note=refused or self._why(u, record))
            for old, new, u in zip(before, after, utterances, strict=True)
        ]

    def _finish(
        self, utterances: Sequence[_Utterance], record: AdaptationRecord, objective: float
    ) -> tuple[list[str], str]:
        """Transcribe, then end the episode or pass the record to the guard; return why it was refused, or ""."""
        try:
            after = self._transcripts(utterances)
        except BaseException:
            undo(self.state, record)
            raise
        if self._guard is None:
            undo(self.state, record)
            return after, ""
        collapsed = any(_text(u.transcripts) for u in utterances) and not any(after)
        if self._guard.accept(record, math.nan if collapsed else objective):
            return after, ""
        reason = "the transcripts became empty" if collapsed else "the adaptation went beyond its bounds"
        return self._transcripts(utterances), f"{reason}: back to the base model"

    def _transcripts(self, utterances: Sequence[_Utterance]) -> list[str]:
        return [_text(self._listen(u.pieces)) for u in utterances]

    def _why(self, utterance: _Utterance, record: AdaptationRecord) -> str:
        """Return why there was nothing to adapt to, or ""."""
        if not utterance.pieces:
            return "no sound"
        return "" if record.steps or not self.steps else "the transcript is empty"

    def check(self, wave: Wave) -> None:
        """Raise AudioProblem for an utterance that is shorter than one frame of the model, unless it is empty."""
        if len(wave):
            refuse_short(wave, self._speech.least, self.rate)

    def _pieces(self, wave: Wave) -> list[Wave]:
        """Return the pieces of an utterance that are not silent."""
        self.check(wave)
        return [piece for piece in split(wave, self.rate) if not is_silent(piece)]

    def _seed(self, waves: Sequence[Wave]) -> int:
        """Derive a seed from the audio, so that order does not matter; in continual adaptation each seed is new."""
        digest = hashlib.blake2b(digest_size=8)
        for wave in waves:
            digest.update(len(wave).to_bytes(8, "little") + wave.astype("<f4", copy=False).tobytes())
        content = int.from_bytes(digest.digest(), "little")
        self._count += 1
        return fold_in(self.settings.seed, content, *([self._count] if self._guard else []))

    def _steps(
        self, utterances: Sequence[_Utterance], seed: int, on_step: Callable[[int, float], None] | None
    ) -> tuple[AdaptationRecord, tuple[float, ...]]:
        """Move the state; return the record and the loss of each step."""
        usable = [
            (piece, transcript)
            for utterance in utterances
            for piece, transcript in zip(utterance.pieces, utterance.transcripts, strict=True)
            if transcript.tokens or self._speech.adapts_to_silence
        ]
        parts = _parts(usable, STEP_SECONDS * self.rate)
        losses: list[float] = []

        def follow(step: int, loss: float) -> None:
            losses.append(loss)
            if on_step is not None:
                on_step(step, loss)

        s = self.settings
        record = adapt(
            self.state,
            self._loss_of_step(parts),
            seed,
            self.steps if usable else 0,
            self._estimator,
            self._learning_rate,
            patience=s.patience if len(parts) == 1 else 0,
            layout=s.layout,
            on_step=follow,
        )
        return record, tuple(losses)

    def _loss_of_step(self, parts: Sequence[Sequence[tuple[Wave, Transcript]]]) -> Callable[[int], LossFn]:
        def make(part: Sequence[tuple[Wave, Transcript]]) -> Callable[[], LossFn]:
            trained = list(self.state.exponents)
            return episode(self._speech, self._reader, part, trained, self._losses, self._precision)

        if len(parts) == 1:
            whole = make(parts[0])
            return lambda step: whole()
        return lambda step: make(parts[step % len(parts)])()  # features of the present part alone are in memory

    def _listen(self, pieces: Sequence[Wave]) -> list[Transcript]:
        return listen(self._speech, self._reader, pieces, self.settings.language)

    def reset(self) -> None:
        """Return to the base, in continual adaptation.

        Raises:
            ChecksumMismatch: something else has moved the weights.
        """
        if self._guard is not None:
            self._guard.reset()
        self.state.expect_checksum(self.base_checksum)

    def file_of(self, adaptation: Adaptation) -> AdaptationFile:
        """Return the file that stores an adaptation of this adapter."""
        return AdaptationFile(
            adaptation.record,
            self.base_id,
            self.state.pattern,
            self.state.scale,
            self.settings.language,
            adaptation.made_of,
            adaptation.reached,
        )

    def replay(
        self,
        file: AdaptationFile,
        waves: Sequence[Wave],
        find: Callable[[int], AdaptationRecord | None] = lambda seed: None,
    ) -> list[str]:
        """Return transcripts under the weights of a stored adaptation, then undo it; see `replay_file`.

        Raises:
            WrongBaseModel: the file belongs to another model.
            ConfigError, ChecksumMismatch: as `replay_file`; also where this adapter trains other tensors.
        """
        if file.base_id != self.base_id:
            raise WrongBaseModel(
                f"the record belongs to base model {file.base_id:016x}, this one is {self.base_id:016x}: pass the "
                "model that was adapted"
            )
        records = replay_file(self.state, file, find)
        try:
            return [self.transcribe(wave) for wave in waves]
        finally:
            for record in reversed(records):
                undo(self.state, record)


def settings_of(file: AdaptationFile, **others: Any) -> AdaptSettings:
    """Return the settings with which an adapter can replay a file."""
    return AdaptSettings(
        trained_tensors=file.trained_tensors, scale=file.scale, language=file.language or "en", **others
    )


def _text(transcripts: Sequence[Transcript]) -> str:
    return " ".join(h.text for h in transcripts if h.text)


def _parts(pieces: Sequence[tuple[Wave, Transcript]], samples: float) -> list[list[tuple[Wave, Transcript]]]:
    """Split pieces in order into parts of at most `samples` samples (or of one piece)."""
    parts: list[list[tuple[Wave, Transcript]]] = [[]]
    for piece in pieces:
        if parts[-1] and sum(len(p) for p, _ in parts[-1]) + len(piece[0]) > samples:
            parts.append([])
        parts[-1].append(piece)
    return parts
