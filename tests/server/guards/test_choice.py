"""A supervised run is guarded wherever the server has speech with transcripts, without being asked."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from listening import listen

from server.guards.choice import guard_for
from server.guards.collapse_guard import CollapseGuard
from server.guards.device_guard import DeviceGuard
from server.guards.guard import Guard
from server.guards.held_out_guard import HeldOutGuard
from server.run.model import GlobalModel
from zo_common.config.run import RunConfig
from zo_common.errors import ConfigError, DataError

Settings = Callable[..., RunConfig]


@pytest.fixture
def split_corpus(mini_corpus: Path, tmp_path: Path) -> Callable[..., Path]:
    """The mini corpus with further splits, copies of its test split."""

    def make(*names: str) -> Path:
        target = tmp_path / "corpus"
        shutil.copytree(mini_corpus, target)
        for name in names:
            shutil.copytree(mini_corpus / "test", target / name)
        return target

    return make


@pytest.fixture
def guard_of(ctc_settings: Settings) -> Callable[..., tuple[Guard, list[str]]]:
    """The guard of a run with some settings, and what was said of it."""

    def make(**changes: Any) -> tuple[Guard, list[str]]:
        words = listen("server.guards")
        config = ctc_settings(**changes)
        held = GlobalModel(config) if config.server_model else None
        return guard_for(config, held), words

    return make


@pytest.mark.parametrize(
    ("splits", "changes", "taken"),
    [
        (("dev", "valid", "validation"), {}, "dev"),
        (("valid", "validation"), {}, "validation"),
        (("valid",), {"eval_split": ""}, "valid"),
        (("dev", "valid"), {"eval_split": "dev"}, "valid"),
        (("dev",), {"guard_split": "test"}, "test"),
        ((), {}, "test"),
        (("dev",), {"evaluate_on": "clients"}, "dev"),
        (("dev",), {"evaluate_on": "clients", "guard_split": "test"}, "test"),
    ],
)
def test_the_first_split_for_that_is_taken(
    guard_of: Any, split_corpus: Any, splits: tuple[str, ...], changes: dict[str, str], taken: str
) -> None:
    guard, words = guard_of(data=str(split_corpus(*splits)), **changes)

    assert isinstance(guard, HeldOutGuard) and guard._of == f"loss of 3 of {taken}"
    assert any("the reported split has chosen the rounds" in word for word in words) is (taken == "test")


NO_SPLIT = r"no guard: '.*' has no split called dev, validation, valid that is free for it, and "
NAME_ONE = "; name a split as guard-split$"
CLEAR = "no guard: the server has no held-out speech, "
PRIVATE = {"local_steps": 1, "weighting": "uniform"}
SHARED = {"directions": "shared", "weighting": "uniform"}


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"guard_split": "none"}, ""),
        ({"eval_split": ""}, f"{NO_SPLIT}eval-split is not set{NAME_ONE}"),
        (
            {"data": "some/corpus", "eval_split": ""},
            f"no guard: which splits 'some/corpus' has is not asked of the hub, and eval-split is not set{NAME_ONE}",
        ),
        (
            {"data": "/no/speech", "eval_split": ""},
            "no guard: the server has no recordings in '/no/speech'; put transcribed",
        ),
        ({"server_model": False, "privacy": "example", **PRIVATE}, f"{CLEAR}privacy is 'example'"),
        ({"data": "", "eval_split": "", "privacy": "device", **PRIVATE, **SHARED}, f"{CLEAR}privacy is 'device'"),
        ({"server_model": False, "secure_aggregation": True, **SHARED}, f"{CLEAR}secure-aggregation is on"),
    ],
)
def test_without_speech_or_model_every_round_passes_and_why_is_told(
    guard_of: Any, changes: dict[str, Any], word: str
) -> None:
    guard, words = guard_of(**changes)

    assert type(guard) is Guard and len(words) == bool(word)
    assert all(re.match(word, said) for said in words)
    assert (guard.step_factor, guard.closings, guard.final_round) == (1.0, 0, 3)
    assert guard.review(1, ()) == ((), "") and guard.settle() is None and guard.summary() is None


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluate_on": "clients"},
        {"server_model": False},
        {"server_model": False, "guard_split": "dev"},
        {"data": "", "eval_split": ""},
        {"data": "", "eval_split": "", "guard_split": "dev"},
    ],
)
def test_where_the_server_has_no_speech_or_model_devices_are_asked(guard_of: Any, changes: dict[str, Any]) -> None:
    guard, words = guard_of(**changes)

    assert isinstance(guard, DeviceGuard) and words == []
    assert guard._of == f"devices' loss of 32 utterances of {changes.get('guard_split', 'held-out speech')}"


def test_speech_that_cannot_be_used_stops_only_who_asked_for_it(guard_of: Any, split_corpus: Any) -> None:
    corpus = split_corpus("dev")
    table = corpus / "dev" / "metadata.csv"
    table.write_text(table.read_text().replace("transcription", "words"))

    guard, words = guard_of(data=str(corpus))

    assert type(guard) is Guard
    assert words == [
        "no guard: split 'dev' cannot be used: text column 'transcription' not found in dev/metadata.csv, it has "
        "file_name, words, speaker: name that of the transcripts as text-column."
    ]
    with pytest.raises(DataError, match="text column 'transcription' not found"):
        guard_of(data=str(corpus), guard_split="dev")
    with pytest.raises(ConfigError, match="server-model is off"):
        guard_of(data=str(corpus), guard_split="dev", server_model=False, objective="suta")


def test_bad_rows_of_a_split_that_nobody_named_are_left_out(guard_of: Any, split_corpus: Any) -> None:
    corpus = split_corpus("dev")
    next((corpus / "dev").glob("*.wav")).write_bytes(b"no sound")

    guard, _ = guard_of(data=str(corpus))

    assert guard._of == "loss of 2 of dev"


@pytest.mark.parametrize(("most", "wheres"), [(0, "234"), (2, "23"), (1, "2"), (9, "234")])
def test_utterances_are_spread(guard_of: Any, most: int, wheres: str) -> None:
    guard, _ = guard_of(guard_utterances=most)

    assert [e.where for e in guard._data.examples] == [f"test/metadata.csv:{line}" for line in wheres]


def test_a_run_without_transcripts_has_the_other_guard(guard_of: Any, untold_corpus: Path) -> None:
    guard, words = guard_of(objective="suta", data=str(untold_corpus), eval_split="", guard_split="test")
    assert isinstance(guard, CollapseGuard) and guard.step_factor == 1.0 and not words

    guard, words = guard_of(objective="suta", data=str(untold_corpus), eval_split="test")
    assert type(guard) is Guard
    assert words == ["objective suta has no guard against collapse: set guard-split to a labelled split on the server"]
