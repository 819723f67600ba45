"""The comparison of adaptation methods: its speech, that no method leaves a trace, and what its tables say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_ctc import write_tiny_ctc

from benchmarks.harness.rows import spread
from benchmarks.tta import report
from benchmarks.tta.comparison import METHODS
from benchmarks.tta.methods import ADAM_STEPS, Passes, first_order, source, zeroth_order
from benchmarks.tta.settings import MODELS
from benchmarks.tta.speech import CONDITIONS, NOISE, RATE, SEEDS, speech, telephone
from benchmarks.tta.studies import STUDIES
from benchmarks.tta.study import Trial, parser, run, trials
from benchmarks.tta.table import Work, digest, summary
from client.adapt.adapter import DEFAULTS, AdaptSettings
from client.adapt.drift_guard import DriftBounds
from simulations.models.pretrain_ctc import TEST_SPEAKERS, Recipe
from simulations.models.tiny import write_tiny_whisper
from simulations.speech.sentences import sentence_key, split_sentences
from zo_common.lattice.state import LatticeState
from zo_common.models.load import LoadedModel, load_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_ctc(tmp_path_factory.mktemp("models") / "ctc")


@pytest.fixture
def loaded(model: Path) -> LoadedModel:
    return load_model(str(model))


class TestSpeech:
    def test_seeds_share_no_utterance_and_training_none_of_them(self) -> None:
        config = Recipe().corpus
        counts = [config.utterances_of(split) for split in ("train", "dev", "test")]
        trained = {sentence_key(text) for text in split_sentences(*counts, config.seed)[0]}

        heard = [{one.text for one in speech("clean", seed, 99)} for seed in range(SEEDS)]

        assert sum(map(len, heard)) == len(set.union(*heard)) == config.test_utterances
        assert not trained & {sentence_key(text) for text in set.union(*heard)}
        assert {one.speaker for one in speech("clean", 0, 99)} == {f"us-{name}" for name in TEST_SPEAKERS}

    def test_noise_has_the_deviation_that_it_is_named_for(self) -> None:
        clean = speech("clean", 0, 2)
        for condition, deviation in NOISE.items():
            for quiet, noisy in zip(clean, speech(condition, 0, 2), strict=True):
                assert noisy.text == quiet.text
                assert np.std(noisy.wave - quiet.wave) == pytest.approx(deviation, rel=0.02)

    def test_seeds_draw_other_noise_and_repeat_their_own(self) -> None:
        once, again = (speech("noise-0.01", 0, 1)[0].wave for _ in range(2))
        assert np.array_equal(once, again)
        shifted = speech("noise-0.01", SEEDS, 1)[0].wave  # the same utterance, another seed
        assert not np.array_equal(once, shifted)

    def test_the_telephone_passes_its_band_alone(self) -> None:
        time = np.arange(RATE) / RATE
        for hertz, share in ((100, 0.0), (1000, 1.0), (3000, 1.0), (5000, 0.0)):
            tone = np.sin(2 * np.pi * hertz * time).astype(np.float32)
            assert np.std(telephone(tone)) / np.std(tone) == pytest.approx(share, abs=0.01)

    def test_an_accent_reads_the_same_sentences_in_another_way(self) -> None:
        ours, theirs = (speech(condition, 0, 2) for condition in ("clean", "scotland"))
        assert [one.text for one in ours] == [one.text for one in theirs]
        assert all(not np.array_equal(a.wave, b.wave) for a, b in zip(ours, theirs, strict=True))


class TestMethods:
    def test_no_method_leaves_a_trace(self, loaded: LoadedModel) -> None:
        spoken, passes = speech("noise-0.01", 0, 2), Passes(loaded)
        settings = AdaptSettings(steps=2, num_queries=2, patience=0, learning_rate=1e-2)
        LatticeState(loaded.model, "norms+biases", "rms")  # snaps the weights, as the first method would
        before = {name: value.clone() for name, value in loaded.model.state_dict().items()}

        plain = source(loaded, passes, spoken)
        outcomes = [
            zeroth_order(loaded, passes, spoken, settings, None),
            zeroth_order(loaded, passes, spoken, settings, DriftBounds(max_drift=10.0)),
            first_order(loaded, passes, spoken, settings, 1e-3),
        ]

        assert all((loaded.model.state_dict()[name] == value).all() for name, value in before.items())
        assert source(loaded, passes, spoken).transcripts == plain.transcripts
        assert all(len(outcome.transcripts) == 2 and outcome.seconds > 0 for outcome in outcomes)

    def test_passes_are_those_of_the_algorithm(self, loaded: LoadedModel) -> None:
        spoken, passes = speech("clean", 0, 2), Passes(loaded)
        settings = AdaptSettings(steps=3, num_queries=4, patience=0)
        transcribing, frozen = 2, 1

        zo = zeroth_order(loaded, passes, spoken, settings, None)
        adam = first_order(loaded, passes, spoken, settings, 1e-5)

        assert source(loaded, passes, spoken).forwards == 1
        assert (zo.forwards, zo.backwards) == (transcribing + 3 * (4 + frozen), 0)
        assert (adam.forwards, adam.backwards) == (transcribing + ADAM_STEPS * (1 + frozen), ADAM_STEPS)
        assert zo.stored < 300 < adam.stored

    def test_passes_of_whisper_count_where_the_encoder_is_cached(
        self, whisper_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # a random Whisper repeats itself, and to hear it again would be another pass
        monkeypatch.setattr("zo_common.models.loops.MAX_COMPRESSION_RATIO", float("inf"))
        loaded = load_model(str(write_tiny_whisper(whisper_dir, tmp_path / "whisper")))
        passes = Passes(loaded)
        settings = AdaptSettings(steps=2, num_queries=3, patience=0, trained_tensors="encoder-norm")

        zo = zeroth_order(loaded, passes, speech("clean", 0, 1), settings, None)

        listening, trusted = 2, 1
        assert zo.forwards == listening + trusted + 2 * 3
        assert source(loaded, passes, speech("clean", 0, 1)).forwards == 1

    def test_trials_of_zo_and_adam_start_from_the_same_base(self, model: Path) -> None:
        """A trial of each reports errors at every mark, from the same base."""
        common = Trial(str(model), "clean", "zo", "norms", 1e-3, 1e-3, 2, "unit", "", "float32", (1, 2), 2)
        zo, adam = run(common), run(Trial(**{**vars(common), "method": "adam"}))
        assert zo["wer"].keys() == adam["wer"].keys() == {"0", "1", "2"}
        assert zo["wer"]["0"] == adam["wer"]["0"]


def test_every_study_holds_the_defaults() -> None:
    for name, lists in STUDIES.items():
        assert set(lists[0]) & set(MODELS)
        default = DEFAULTS["CTC" if name.endswith("-ctc") else "Whisper"]
        found = [one for each in lists for one in trials(parser().parse_args(each))]
        assert any(
            (one.method, one.tensors, one.learning_rate, one.epsilon, one.queries, one.scale, one.layout)
            == ("zo", default.trained_tensors, default.learning_rate, default.epsilon, 8, "rms", "float32")
            for one in found
        ), name


def _row(method: str, seed: int, wer: float, seconds: float = 1.0) -> dict[str, object]:
    cost = {"forwards": 10.0, "backwards": 0.0, "seconds": seconds, "stored": 1000.0}
    return {"model": "m", "condition": "clean", "seed": seed, "method": method, "wer": wer} | cost


def test_a_line_holds_means_over_seeds_and_the_share_of_first_orders_gain() -> None:
    rows = [_row("source", 0, 0.4), _row("source", 1, 0.5, 2.0)]
    rows += [_row("zo-episodic", 0, 0.3, 10.0), _row("zo-episodic", 1, 0.4, 10.0)]
    rows += [_row("adam-episodic", 0, 0.2), _row("adam-episodic", 1, 0.3)]

    line = summary(rows, "m", "clean")

    assert line["zo-episodic"]["wer"]["mean"] == pytest.approx(0.35)
    assert line["zo-episodic"]["seconds_over_source"]["mean"] == pytest.approx(7.5)
    assert line["share_of_first_order_gain"] == {"zo-episodic": pytest.approx(0.5)}


def test_where_first_order_gains_nothing_there_is_no_share() -> None:
    rows = [_row("source", 0, 0.4), _row("zo-episodic", 0, 0.3), _row("adam-episodic", 0, 0.4)]
    line = summary(rows, "m", "clean")
    assert line["share_of_first_order_gain"] == {"zo-episodic": None}


def test_differences_are_those_of_the_same_utterances() -> None:
    """By hand: 0.1 less on each of two seeds is a change without spread, whatever the seeds' own rates are."""
    before, after = spread([0.3, 0.5]), spread([0.2, 0.4])
    assert report._change(after, before) == "-10.0 ± 0.0"
    assert report._wer(after) == "30.0 ± 14.1"


def test_a_killed_run_knows_what_it_has_done_and_with_which_settings(tmp_path: Path) -> None:
    cell = ("wav2vec2-tiny-us", "clean", 0)
    held = [_row("source", 0, 0.4), _row("zo-episodic", 0, 0.3)]
    known = [row | {"model": cell[0], "settings": digest(cell[0], str(row["method"]))} for row in held]
    known[1]["settings"] = "of another learning rate"
    path = tmp_path / "rows.jsonl"
    Work(path).add(known)
    with path.open("a") as file:
        file.write('{"model": "wav2vec2-ti')  # where a kill came

    work = Work(path)

    assert work.of(cell, "source") == known[0]
    assert work.missing(cell) == tuple(method for method in METHODS if method != "source")


def test_the_conditions_are_those_of_the_tables() -> None:
    assert len(CONDITIONS) == 6
    assert set(NOISE) < set(CONDITIONS)
