"""Adapting to utterances: transcripts, records that replay, and the base to the bit whatever happens."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_ctc import noise_waves, write_tiny_ctc
from torch import nn

from client.adapt import adapter as adapt_module
from client.adapt.adapter import Adapter, AdaptSettings, settings_of
from client.adapt.drift_guard import DriftBounds
from client.adapt.file import decode_file, encode_file
from client.adapt.record import Layout
from zo_common.errors import ChecksumMismatch, ConfigError, NonFiniteLoss, WrongBaseModel, ZOError
from zo_common.lattice.update import Update
from zo_common.models.load import LoadedModel, load_model
from zo_common.speech.audio import AudioProblem
from zo_common.speech.ctc_model import CTCModel

QUICK: dict[str, Any] = {
    "steps": 2, "num_queries": 2, "trained_tensors": "norms", "scale": "unit", "epsilon": 1e-3, "learning_rate": 1.6e-4
}  # fmt: skip
STRONG = QUICK | {"steps": 4, "learning_rate": 0.1}  # so that the random model says something else


@pytest.fixture(scope="module")
def ctc_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_ctc(tmp_path_factory.mktemp("models") / "ctc")


@pytest.fixture(scope="module")
def other_ctc_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_ctc(tmp_path_factory.mktemp("models") / "other", seed=1)


@pytest.fixture
def ctc(ctc_dir: Path) -> LoadedModel:
    return load_model(str(ctc_dir))


@pytest.fixture
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _bits(model: nn.Module) -> dict[str, bytes]:
    return {name: p.detach().numpy().tobytes() for name, p in model.named_parameters()}


@pytest.mark.slow
def test_a_thousand_utterances_leave_no_trace_and_need_no_copy(
    ctc: LoadedModel, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder: Any = ctc.model.get_submodule("wav2vec2.encoder")
    encoder.layers = encoder.layers[:1]  # for time's sake
    adapter = Adapter(ctc, AdaptSettings(steps=1, num_queries=2, trained_tensors="norms", learning_rate=0.01))
    bits, places = _bits(ctc.model), [p.data_ptr() for p in ctc.model.parameters()]
    ends: set[int] = set()

    deepcopy = copy.deepcopy

    def no_copy(what: Any = None, *more: Any, **named: Any) -> Any:
        if isinstance(what, nn.Module | torch.Tensor):
            raise AssertionError("a copy of the model was made")
        return deepcopy(what, *more, **named)  # libraries copy settings

    for owner, name in ((copy, "deepcopy"), (nn.Module, "state_dict"), (nn.Module, "load_state_dict")):
        monkeypatch.setattr(owner, name, no_copy)
    for seed in range(1000):
        result = adapter.adapt(noise_waves(1100 + seed % 100, seed=seed)[0])
        assert adapter.state.checksum() == result.record.start == adapter.base_checksum
        ends.add(result.reached)

    assert len(ends) == 1000
    assert adapter.base_checksum not in ends
    assert _bits(ctc.model) == bits
    assert [p.data_ptr() for p in ctc.model.parameters()] == places


@pytest.mark.parametrize("layout", ["float32", "float16", "sign"])
def test_the_record_gives_the_same_transcript_elsewhere(ctc: LoadedModel, ctc_dir: Path, layout: Layout) -> None:
    adapter = Adapter(ctc, AdaptSettings(**STRONG, layout=layout))
    waves = noise_waves(16000, 9000)
    results = [adapter.adapt(wave) for wave in waves]

    for wave, result in zip(waves, results, strict=True):
        file = decode_file(encode_file(adapter.file_of(result)))
        elsewhere = Adapter(load_model(str(ctc_dir)), settings_of(file))

        assert elsewhere.replay(file, [wave]) == [result.after]
        assert elsewhere.state.checksum() == elsewhere.base_checksum == adapter.base_checksum
    assert all(result.after != result.before for result in results)


def test_an_utterance_is_adapted_alike_in_any_company(ctc: LoadedModel) -> None:
    adapter = Adapter(ctc, AdaptSettings(**STRONG))
    first, second = noise_waves(8000, 6000)

    alone = adapter.adapt(second)
    adapter.adapt(first)
    after_another = adapter.adapt(second)

    assert alone.record == after_another.record
    assert (alone.before, alone.after) == (after_another.before, after_another.after)
    assert adapter.adapt(first).record.seed != alone.record.seed


def test_the_objective_falls_and_is_reported(ctc: LoadedModel) -> None:
    seen: list[tuple[int, float]] = []
    adapter = Adapter(ctc, AdaptSettings(steps=12, num_queries=4, learning_rate=0.02, trained_tensors="norms"))

    result = adapter.adapt(noise_waves(4000)[0], lambda step, loss: seen.append((step, loss)))

    assert tuple(enumerate(result.objectives)) == tuple(seen)
    assert result.objectives[-1] < result.objectives[0] - 1e-3
    assert (result.record.steps, result.stopped_early, result.note) == (12, False, "")


def test_it_stops_early_where_the_objective_does_not_fall(ctc: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = Adapter(ctc, AdaptSettings(**QUICK | {"steps": 30, "patience": 3}))
    monkeypatch.setattr(CTCModel, "episode", lambda *_: lambda: lambda: torch.ones(1))

    result = adapter.adapt(noise_waves(800)[0])

    assert result.record.steps == 6  # three for a mean, three without a new minimum
    assert result.stopped_early
    assert adapter.state.checksum() == adapter.base_checksum


@pytest.mark.parametrize("samples", [0, 16000, 40 * 16000])
def test_nothing_and_silence_are_no_words(ctc: LoadedModel, samples: int) -> None:
    adapter = Adapter(ctc, AdaptSettings(**QUICK))

    result = adapter.adapt(np.full(samples, 0.25, np.float32))

    assert (result.before, result.after, result.note) == ("", "", "no sound")
    assert (result.record.steps, result.reached, result.kept) == (0, adapter.base_checksum, True)
    assert adapter.replay(adapter.file_of(result), [np.zeros(samples, np.float32)]) == [""]


def test_no_steps_are_only_a_transcript(ctc: LoadedModel) -> None:
    result = Adapter(ctc, AdaptSettings(**QUICK | {"steps": 0})).adapt(noise_waves(4000)[0])

    assert result.before == result.after != ""
    assert (result.record.steps, result.note, result.stopped_early) == (0, "", False)


def test_shorter_than_the_receptive_field_is_said(ctc: LoadedModel) -> None:
    adapter = Adapter(ctc, AdaptSettings(**QUICK))
    message = "has 399 samples, expected at least 400 at 16000 Hz, the model's receptive field"

    with pytest.raises(AudioProblem, match=message):
        adapter.adapt(noise_waves(399)[0])

    assert adapter.adapt(noise_waves(400)[0]).record.steps == 2


def test_a_long_utterance_is_one_episode_of_bounded_passes(ctc: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    longest = 0
    forward = ctc.model.forward

    def watched(values: torch.Tensor, **options: Any) -> Any:
        nonlocal longest
        longest = max(longest, values.shape[0] * values.shape[1])
        return forward(values, **options)

    monkeypatch.setattr(ctc.model, "forward", watched)
    wave = noise_waves(70 * 16000)[0]
    wave[30 * 16000 : 40 * 16000] = 0.0
    adapter = Adapter(ctc, AdaptSettings(**QUICK))

    result = adapter.adapt(wave)

    assert longest <= 60 * 16000
    assert result.record.steps == 2
    assert result.after.count(" ") >= 2
    assert adapter.transcribe(wave) == result.before


def test_beyond_a_minute_the_steps_take_turns(ctc: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapt_module, "STEP_SECONDS", 0.5)
    looked: list[list[int]] = []
    episode = adapt_module.episode

    def watched(speech: Any, reader: Any, pieces: Any, *others: Any) -> Any:
        looked.append([len(piece) for piece, _ in pieces])
        return episode(speech, reader, pieces, *others)

    monkeypatch.setattr(adapt_module, "episode", watched)
    adapter = Adapter(ctc, AdaptSettings(**QUICK | {"steps": 4, "patience": 1}))

    result = adapter.adapt_together(noise_waves(4000, 3000, 5000))[0]

    assert looked == [[4000, 3000], [5000], [4000, 3000], [5000]]
    assert result.record.steps == 4  # none stops early: the parts differ
    assert adapter.state.checksum() == adapter.base_checksum


def test_several_are_one_episode_with_one_record(ctc: LoadedModel) -> None:
    adapter = Adapter(ctc, AdaptSettings(**STRONG))
    waves = [*noise_waves(9000, 7000), np.zeros(500, np.float32)]

    results = adapter.adapt_together(waves)

    assert len({id(result.record) for result in results}) == 1
    assert [result.note for result in results] == ["", "", "no sound"]
    assert [result.before for result in results] == [adapter.transcribe(wave) for wave in waves]
    assert adapter.replay(adapter.file_of(results[0]), waves) == [result.after for result in results]
    assert results[0].record != adapter.adapt(waves[0]).record


class TestContinual:
    def _adapter(self, ctc: LoadedModel, **bounds: Any) -> Adapter:
        return Adapter(ctc, AdaptSettings(**STRONG, continual=DriftBounds(**bounds)))

    def test_adaptations_pile_up_and_all_come_off(self, ctc: LoadedModel) -> None:
        bits = _bits(Adapter(ctc, AdaptSettings(**QUICK)).state.model)
        adapter = self._adapter(ctc)
        wave = noise_waves(8000)[0]

        results = [adapter.adapt(wave) for _ in range(3)]

        assert [len(result.made_of) for result in results] == [1, 2, 3]
        assert [result.record.start for result in results[1:]] == [result.reached for result in results[:-1]]
        assert results[1].before == results[0].after
        assert len(set(results[2].made_of)) == 3
        assert adapter.drift > 0
        adapter.reset()
        assert (_bits(ctc.model), adapter.drift) == (bits, 0.0)

    def test_too_far_is_back_to_the_base(self, ctc: LoadedModel) -> None:
        adapter = self._adapter(ctc, max_drift=1e-4)
        wave = noise_waves(8000)[0]
        base = adapter.transcribe(wave)

        result = adapter.adapt(wave)

        assert (result.kept, result.after, result.made_of) == (False, base, ())
        assert result.note == "the adaptation went beyond its bounds: back to the base model"
        assert result.record.steps == 4
        assert adapter.state.checksum() == result.reached == adapter.base_checksum

    def test_a_model_that_falls_silent_is_back_to_the_base(
        self, ctc: LoadedModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        adapter = self._adapter(ctc)
        listen, wave = CTCModel.transcribe, noise_waves(8000)[0]
        base = adapter.transcribe(wave)

        def deaf(self: CTCModel, examples: Any, **options: Any) -> Any:
            heard = listen(self, examples, **options)
            return heard if adapter.state.checksum() == adapter.base_checksum else [type(h)("") for h in heard]

        monkeypatch.setattr(CTCModel, "transcribe", deaf)
        result = adapter.adapt(wave)

        assert result.note == "the transcripts became empty: back to the base model"
        assert (result.kept, result.before, result.after) == (False, base, base)
        assert adapter.state.checksum() == adapter.base_checksum

    def test_the_anchor_forgets_and_every_transcript_replays(self, ctc: LoadedModel, ctc_dir: Path) -> None:
        adapter = self._adapter(ctc, anchor=0.5)
        waves = [*noise_waves(8000, 7000, 6000), np.zeros(800, np.float32)]
        results = [adapter.adapt(wave) for wave in waves]
        files = {result.record.seed: adapter.file_of(result) for result in results}
        elsewhere = Adapter(load_model(str(ctc_dir)), settings_of(files[results[0].record.seed]))

        assert [len(result.made_of) for result in results] == [1, 2, 2, 1]
        for wave, result in zip(waves, results, strict=True):
            file = files[result.record.seed]
            assert elsewhere.replay(file, [wave], lambda seed: files[seed].record) == [result.after]
        with pytest.raises(ConfigError, match="not beside it"):
            elsewhere.replay(files[results[2].record.seed], waves[:1])
        assert elsewhere.state.checksum() == elsewhere.base_checksum


@pytest.mark.parametrize("continual", [None, DriftBounds()])
@pytest.mark.parametrize("place", ["step", "loss", "after"])
def test_any_failure_leaves_the_weights_where_they_were(
    ctc: LoadedModel, monkeypatch: pytest.MonkeyPatch, continual: DriftBounds | None, place: str
) -> None:
    adapter = Adapter(ctc, AdaptSettings(**QUICK, continual=continual))
    wave = noise_waves(2000)[0]
    adapter.adapt(wave)
    before, drift, listen = adapter.state.checksum(), adapter.drift, CTCModel.transcribe

    def interrupt(step: int, loss: float) -> None:
        if place == "step":
            raise KeyboardInterrupt

    def heard(self: CTCModel, examples: Any, **options: Any) -> Any:
        if adapter.state.checksum() != before:
            raise KeyboardInterrupt
        return listen(self, examples, **options)

    if place == "loss":
        monkeypatch.setattr(CTCModel, "episode", lambda *_: lambda: lambda: torch.full((1,), torch.nan))
    if place == "after":
        monkeypatch.setattr(CTCModel, "transcribe", heard)

    with pytest.raises(NonFiniteLoss if place == "loss" else KeyboardInterrupt):
        adapter.adapt(wave, interrupt)

    assert (adapter.state.checksum(), adapter.drift) == (before, drift)


def test_weights_that_something_else_moved_are_noticed(ctc: LoadedModel) -> None:
    adapter = Adapter(ctc, AdaptSettings(**QUICK))
    adapter.state.apply([Update(99, 1e-3)])

    with pytest.raises(ChecksumMismatch):
        adapter.adapt(noise_waves(800)[0])


def test_a_record_of_another_model_or_other_tensors_is_refused(ctc: LoadedModel, other_ctc_dir: Path) -> None:
    adapter = Adapter(ctc, AdaptSettings(**STRONG))
    wave = noise_waves(4000)[0]
    file = adapter.file_of(adapter.adapt(wave))

    with pytest.raises(WrongBaseModel, match=r"belongs to base model .* pass the model that was adapted"):
        Adapter(load_model(str(other_ctc_dir)), settings_of(file)).replay(file, [wave])
    elsewhere = Adapter(ctc, AdaptSettings(**STRONG | {"trained_tensors": "bias"}))
    with pytest.raises(ChecksumMismatch):
        elsewhere.replay(file, [wave])

    assert elsewhere.state.checksum() == elsewhere.base_checksum


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": -1}, "steps is -1"),
        ({"num_queries": 1}, "num-queries is 1"),
        ({"learning_rate": 0.0}, r"learning-rate is 0\.0"),
        ({"patience": -1}, "patience is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"layout": "float8"}, "layout is 'float8', expected one of float32, float16, sign"),
        ({"scale": "x"}, "scale is 'x', expected one of unit, rms"),
        ({"precision": "x"}, "precision is 'x'"),
        ({"objective": "self-training"}, "objective is 'self-training', a CTC model adapts by one of: suta, entropy"),
        ({"trained_tensors": "nope"}, "pattern 'nope' matches none"),
        ({"epsilon": 1e-12}, "epsilon 1e-12 rounds to zero"),
    ],
)
def test_settings_are_checked_before_any_audio(ctc: LoadedModel, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ZOError, match=message):
        Adapter(ctc, AdaptSettings(**changes))


def test_objectives_and_families_have_defaults(ctc: LoadedModel) -> None:
    default, entropy = Adapter(ctc), Adapter(ctc, AdaptSettings(**QUICK, objective="entropy"))
    wave = noise_waves(4000)[0]

    assert any("q_proj.bias" in name for name in default.state.exponents)
    assert default.steps == 40
    assert entropy.adapt(wave).record != Adapter(ctc, AdaptSettings(**QUICK)).adapt(wave).record
