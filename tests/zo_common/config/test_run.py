"""Run settings: names, types and ranges, each refused in a sentence that helps."""

from __future__ import annotations

import math
import tomllib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zo_common.config.run import CHOICES, SETTINGS, RunConfig, _tell_new_name, kebab
from zo_common.errors import ConfigError
from zo_common.estimator.settings import EstimatorConfig

configs = st.builds(
    RunConfig,
    model=st.text(max_size=20),
    estimator=st.sampled_from(CHOICES["estimator"]),
    scale=st.sampled_from(CHOICES["scale"]),
    lr_schedule=st.sampled_from(CHOICES["lr_schedule"]),
    num_queries=st.integers(2, 65535),
    epsilon=st.just("auto") | st.floats(1e-9, 1.0),
    tail_tokens=st.just("auto") | st.integers(0, 1500),
    learning_rate=st.floats(1e-12, 1e3),
    local_steps=st.integers(1, 65535),
    run_seed=st.integers(0, 2**63 - 1),
    drop_out=st.floats(0, 0.99),
    resume=st.booleans(),
)


@given(configs)
def test_settings_survive_the_round_trip(config: RunConfig) -> None:
    mapping = config.to_mapping()

    assert RunConfig.from_mapping(mapping) == config
    assert set(mapping) == {kebab(f.name) for f in fields(RunConfig)}
    assert all(isinstance(value, str | int | float | bool) for value in mapping.values())


def test_the_home_folder_in_every_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/of-somebody")
    paths = {"model": "~/model", "data": "~/data", "output": "~/out", "feature-cache": "~/cache"}

    found = RunConfig.from_mapping(paths | {"guard-split": "~"}).to_mapping()

    assert {key: found[key] for key in paths} == {
        key: value.replace("~", "/home/of-somebody") for key, value in paths.items()
    }
    assert found["guard-split"] == "~"  # the name of a split


def test_snake_case_keys_are_the_same_settings() -> None:
    found = RunConfig.from_mapping({"num_queries": 4, "batch-size": 3, "lr_schedule": "constant"})

    assert found == RunConfig(num_queries=4, batch_size=3, lr_schedule="constant")
    assert RunConfig.from_mapping({}) == RunConfig()


def test_a_learning_rate_is_a_number_or_measured() -> None:
    """Flower's run-config holds the type that a user writes: learning-rate="auto" or learning-rate=1e-3."""
    measured, given_one = RunConfig(), RunConfig.from_mapping({"learning-rate": 1e-3})

    assert (measured.learning_rate, measured.measures_curvature) == ("auto", True)
    assert (given_one.learning_rate, given_one.measures_curvature) == (1e-3, False)
    assert not RunConfig(privacy="example").measures_curvature
    assert RunConfig.from_mapping({"learning-rate": "auto"}) == measured
    with pytest.raises(ConfigError, match=r"learning-rate is '1e-3', expected a number such as 1e-3, or auto"):
        RunConfig.from_mapping({"learning-rate": "1e-3"})
    with pytest.raises(ConfigError, match="expected a number here"):
        measured.learning_rate_at(1)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"lr_schedule": "linear"}, "lr-schedule is 'linear' with learning-rate=auto"),
        ({"objective": "suta"}, "objective 'suta', whose curvature is no Fisher matrix: set a number"),
        ({"objective": "entropy"}, "set a number"),
        (
            {"aggregation": "sign-vote", "directions": "shared", "weighting": "uniform", "min_replies": 7},
            "'sign-vote', whose steps have one size, the learning rate: set a number",
        ),
        ({"learning_rate": "fast"}, "learning-rate is 'fast', expected a number"),
        ({"clip_utterances": 0.5}, "clip-utterances is 0.5, expected at least 1"),
        ({"clip_utterances": math.nan}, "clip-utterances is nan"),
    ],
)
def test_what_no_step_can_be_measured_with_is_refused(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        RunConfig(**changes)


def test_whole_numbers_are_real_numbers() -> None:
    found = RunConfig.from_mapping({"learning-rate": 1, "drop-out": 0})

    assert found.learning_rate == 1.0
    assert isinstance(found.learning_rate, float)
    assert isinstance(found.drop_out, float)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("learning-rat", "learning-rate"),
        ("num_query", "num-queries"),
        ("batchsize", "batch-size"),
        ("local-step", "local-steps"),
        ("Epsilon", "epsilon"),
        ("num-server-round", "num-server-rounds"),
    ],
)
def test_an_unknown_key_names_the_nearest(key: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"^unknown setting '{key}': did you mean '{nearest}'"):
        RunConfig.from_mapping({key: 1})


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("rounds", "'num-server-rounds' or 'max-bad-rounds'"),
        ("seed", "'run-seed'"),
        ("clients", "'min-clients' or 'clients-per-round'"),
    ],
)
def test_a_word_of_a_setting_leads_to_the_settings_that_have_it(key: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=rf"^unknown setting '{key}': did you mean {meant}\?$"):
        RunConfig.from_mapping({key: 1})


def test_a_key_like_no_other_lists_them_all() -> None:
    with pytest.raises(ConfigError, match=r"^unknown setting '%%': known keys are data, train-split, text-column"):
        RunConfig.from_mapping({"%%": 1})


@pytest.mark.parametrize("key", ["noise-check", "noise_check"])
def test_a_setting_by_its_earlier_name_is_taken_and_told_once(key: str, caplog: pytest.LogCaptureFixture) -> None:
    _tell_new_name.cache_clear()

    found = [RunConfig.from_mapping({key: False}) for _ in range(2)]

    assert found == [RunConfig(loss_check=False)] * 2
    assert [record.message.split(",")[0] for record in caplog.records] == [f"{key} is called loss-check now"]
    with pytest.raises(ConfigError, match=f"{key} is set though loss-check is: leave one of them out"):
        RunConfig.from_mapping({"loss-check": True, key: False})


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("num-queries", "8", "int"),
        ("num-queries", 8.0, "int"),
        ("num-queries", True, "int"),
        ("learning-rate", True, "float"),
        ("resume", 1, "bool"),
        ("resume", "true", "bool"),
        ("model", 3, "str"),
        ("scale", 1, "str"),
        ("estimator", None, "str"),
    ],
)
def test_the_wrong_type_is_refused(key: str, value: object, expected: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{key} is .* \({type(value).__name__}\), expected {expected}$"):
        RunConfig.from_mapping({key: value})


@pytest.mark.parametrize("name", CHOICES)
def test_choices_are_listed(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{kebab(name)} is 'other', expected one of {', '.join(CHOICES[name])}$"):
        RunConfig.from_mapping({kebab(name): "other"})
    needed = name in ("privacy", "aggregation")
    others = {"directions": "shared", "weighting": "uniform", "min_replies": 7} if needed else {}
    others |= {"learning-rate": 1e-3}
    for option in CHOICES[name]:
        assert getattr(RunConfig.from_mapping(others | {name: option}), name) == option


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num-server-rounds", 0),
        ("local-steps", 0),
        ("local-steps", 65536),
        ("batch-size", 0),
        ("batch-size", 65536),
        ("min-clients", 0),
        ("clients-per-round", -1),
        ("evaluate-every", -1),
        ("eval-utterances", -1),
        ("tail-tokens", -1),
        ("late-joiners", -1),
        ("learning-rate", 0.0),
        ("learning-rate", -1e-3),
        ("learning-rate", math.nan),
        ("learning-rate", math.inf),
        ("round-timeout", 0.0),
        ("max-scalar", math.inf),
        ("run-seed", -1),
        ("run-seed", 2**63),
        ("drop-out", 1.0),
        ("drop-out", -0.1),
        ("drop-out", math.nan),
        ("num-queries", 0),
        ("num-queries", 1),
        ("num-queries", 65536),
        ("epsilon", 0.0),
        ("epsilon", math.nan),
        ("epsilon", "small"),
        ("epsilon", "1e-3"),
        ("tail-tokens", "none"),
    ],
)
def test_values_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is |^local-steps and batch-size are at most 65535$"):
        RunConfig.from_mapping({name: value})


@pytest.mark.parametrize("name", ["epsilon", "tail-tokens"])
def test_a_number_or_auto_may_be_chosen(name: str) -> None:
    assert RunConfig.from_mapping({name: "auto"}) == RunConfig()
    assert RunConfig.from_mapping({name: 1}).to_mapping()[name] == 1
    with pytest.raises(ConfigError, match=f"^{name} is True"):
        RunConfig.from_mapping({name: True})


def test_an_epsilon_that_devices_choose_is_zero_in_a_plan() -> None:
    assert RunConfig().estimator_config.epsilon == 0
    assert RunConfig(epsilon=2e-3).estimator_config.epsilon == 2e-3


def test_ranges_hold_after_replace_too() -> None:
    with pytest.raises(ConfigError):
        replace(RunConfig(), local_steps=0)


def test_one_query_is_enough_where_the_estimator_allows_it() -> None:
    config = RunConfig(estimator="two-sided", num_queries=1, epsilon=2e-3)

    assert config.estimator_config == EstimatorConfig("two-sided", 1, 2e-3)


class TestLearningRate:
    def test_constant(self) -> None:
        config = RunConfig(lr_schedule="constant", learning_rate=0.3, num_server_rounds=4)

        assert [config.learning_rate_at(n) for n in (1, 2, 3, 4)] == [0.3] * 4

    def test_linear(self) -> None:
        config = RunConfig(lr_schedule="linear", learning_rate=0.4, num_server_rounds=4)

        assert [config.learning_rate_at(n) for n in (1, 2, 3, 4)] == pytest.approx([0.4, 0.3, 0.2, 0.1])

    def test_cosine(self) -> None:
        config = RunConfig(lr_schedule="cosine", learning_rate=0.4, num_server_rounds=4)
        half = math.sqrt(0.5)

        expected = [0.4, 0.2 * (1 + half), 0.2, 0.2 * (1 - half)]
        assert [config.learning_rate_at(n) for n in (1, 2, 3, 4)] == pytest.approx(expected)

    def test_a_number_falls_linearly_unless_told_otherwise(self) -> None:
        config = RunConfig(learning_rate=0.4, num_server_rounds=4)

        assert [config.learning_rate_at(n) for n in (1, 2, 3, 4)] == pytest.approx([0.4, 0.3, 0.2, 0.1])

    @given(st.sampled_from(CHOICES["lr_schedule"]), st.integers(1, 200))
    def test_every_round_has_a_positive_rate_that_never_rises(self, schedule: Any, rounds: int) -> None:
        config = RunConfig(lr_schedule=schedule, learning_rate=0.4, num_server_rounds=rounds)

        rates = [config.learning_rate_at(n) for n in range(1, rounds + 1)]

        assert rates[0] == 0.4
        assert rates == sorted(rates, reverse=True)
        assert rates[-1] > 0


def test_flwr_run_accepts_exactly_the_settings_with_their_defaults() -> None:
    """`[tool.flwr.app.config]` cannot be computed, so it is compared."""
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    accepted = project["tool"]["flwr"]["app"]["config"]

    assert accepted == {each.key: each.app_default for each in SETTINGS}
    assert {key: type(value) for key, value in accepted.items()} == {e.key: type(e.app_default) for e in SETTINGS}
    assert RunConfig.from_mapping(accepted).num_server_rounds >= 1


def test_every_setting_is_in_a_section_and_documented() -> None:
    sections = ("data", "model", "method", "aggregation", "privacy", "federation", "evaluation", "simulation")

    assert tuple(dict.fromkeys(each.section for each in SETTINGS)) == sections
    assert [each.name for each in SETTINGS] == [each.name for each in fields(RunConfig)]
    for each in SETTINGS:
        assert each.values
        assert each.about.doc.endswith("."), each.key
        assert each.about.resume in ("fixed", "free")


def test_a_setting_knows_its_values() -> None:
    values = {each.key: each.values for each in SETTINGS}

    assert values["estimator"] == ", ".join(CHOICES["estimator"])
    assert values["resume"] == "true, false"
    assert values["output"] == "text"
    assert values["learning-rate"] == "number above 0 or auto"
    assert values["local-steps"] == "whole number at least 1"
    assert values["entropy-weight"] == "number 0 … 1"
    assert values["torch-threads"] == "whole number 0 … 4096"


@pytest.mark.parametrize("threads", [-1, 4097, 10**11])
def test_threads_are_those_of_one_machine(threads: int) -> None:
    with pytest.raises(ConfigError, match=rf"^torch-threads is {threads}, expected 0 … 4096$"):
        RunConfig(torch_threads=threads)


def test_no_round_is_before_the_first() -> None:
    with pytest.raises(ConfigError, match=r"^late-round is -1, expected at least 0$"):
        RunConfig(late_round=-1)


@pytest.mark.parametrize("objective", ["suta", "entropy"])
def test_tensors_are_not_calibrated_without_a_curvature(objective: Any) -> None:
    with pytest.raises(ConfigError, match="trained-tensors=encoder-norm"):
        RunConfig(objective=objective, learning_rate=0.1, trained_tensors="auto")
    assert RunConfig(objective="self-training", trained_tensors="auto").trained_tensors == "auto"


def test_tensors_are_not_calibrated_with_frozen_weights_in_another_type() -> None:
    with pytest.raises(ConfigError, match=r"frozen-precision is 'int8' with trained-tensors=auto.*: name a preset"):
        RunConfig(trained_tensors="auto", frozen_precision="int8")


def test_a_tilde_is_the_home_folder_wherever_a_place_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/anna")

    config = RunConfig(model="~/m", data="~/d", output="~/o", feature_cache="~/c", text_column="~")

    assert (config.model, config.data, config.output) == ("/home/anna/m", "/home/anna/d", "/home/anna/o")
    assert (config.feature_cache, config.text_column) == ("/home/anna/c", "~")
    assert replace(config, batch_size=2) == replace(config, batch_size=2, model="~/m")
