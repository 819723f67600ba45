"""Natural and generated partitions: disjoint, complete, deterministic, never empty."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from zo_common.errors import ConfigError
from zo_common.speech.manifest import Manifest, Utterance
from zo_common.speech.partition import Partitions, named_rows, partition
from zo_common.speech.utterance import LeftOut

UTTERANCES = [
    Utterance(
        f"metadata.csv:{index + 2}", Path("a.wav"), "text", {"speaker": f"s{index // 8}", "accent": "xy"[index % 2]}
    )
    for index in range(48)
]
GENERATED = ("iid", "dirichlet:speaker:0.5", "shard:speaker")


def all_of(by: str, count: int, seed: int = 0) -> list[list[int]]:
    return [partition(UTTERANCES, index, count, by, seed=seed) for index in range(count)]


def test_natural() -> None:
    assert all_of("speaker", 6) == [list(range(start, start + 8)) for start in range(0, 48, 8)]
    assert all_of("accent", 2) == [list(range(0, 48, 2)), list(range(1, 48, 2))]
    shuffled = [UTTERANCES[index] for index in (40, 0, 41, 8)]
    assert partition(shuffled, 2, 3, "speaker") == [0, 2]


@pytest.mark.parametrize("by", GENERATED)
def test_generated(by: str) -> None:
    pytest.importorskip("flwr_datasets")
    parts = all_of(by, 4)
    assert sorted(index for part in parts for index in part) == list(range(48))
    assert all(part == sorted(part) and part for part in parts)
    assert parts == all_of(by, 4)
    assert parts != all_of(by, 4, seed=1)


@pytest.mark.parametrize("by", [*GENERATED, "speaker", "round-robin"])
def test_shares_are_worked_out_once_for_all(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("flwr_datasets")
    expected = all_of(by, 6)
    shares = Partitions(UTTERANCES, 6, by)
    first = shares.of(3)
    monkeypatch.setattr("zo_common.speech.partition._values", None)
    monkeypatch.setattr("zo_common.speech.partition._flwr_datasets", None)

    assert [shares.of(index) for index in range(6)] == expected
    assert first == expected[3]


def test_schemes_differ_as_they_should() -> None:
    pytest.importorskip("flwr_datasets")
    speakers = [[{UTTERANCES[i].columns["speaker"] for i in part} for part in all_of(by, 4)] for by in GENERATED]
    assert all(len(part) > 3 for part in speakers[0])
    assert all(len(part) <= 4 for part in speakers[2])
    assert len({len(part) for part in all_of("dirichlet:speaker:0.5", 4)}) > 1


@pytest.mark.parametrize(
    ("by", "partition_id", "count", "message"),
    [
        (
            "speaker",
            0,
            4,
            r"4 devices were asked for, but the data has 6 values of speaker \(s0, .*: have 6 devices",
        ),
        ("dialect", 0, 4, r"Column 'dialect' not found, the data has accent, speaker: .*dirichlet:<column>:<alpha>"),
        ("dirichlet:dialect:1", 0, 4, "Column 'dialect' not found"),
        ("dirichlet:speaker", 0, 4, "Cannot partition by 'dirichlet:speaker': expected dirichlet:<column>:<alpha>"),
        ("dirichlet:speaker:-1", 0, 4, "with alpha above 0"),
        ("dirichlet:speaker:nan", 0, 4, "with alpha above 0"),
        ("dirichlet:speaker:0.0001", 0, 30, "Cannot share 48 utterances by .* among 30 clients .* raise"),
        ("shard", 0, 4, "expected shard:<column>"),
        ("shard:speaker", 0, 30, "without an empty one: have fewer devices"),
        ("iid", 4, 4, "partition-id is 4 with num-partitions 4"),
        ("iid", 0, 0, "partition-id is 0 with num-partitions 0"),
        ("iid", 0, 49, "49 devices share 48 utterances, which leaves some without any: have fewer devices"),
        ("iid:3", 0, 4, "Column 'iid:3' not found"),
    ],
)
def test_errors(by: str, partition_id: int, count: int, message: str) -> None:
    pytest.importorskip("flwr_datasets")
    with pytest.raises(ConfigError, match=message):
        partition(UTTERANCES, partition_id, count, by)


def test_missing_value() -> None:
    some = [*UTTERANCES, Utterance("metadata.csv:50", Path("a.wav"), "text", {"speaker": ""})]
    with pytest.raises(ConfigError, match=r"1 of 49 utterances have no speaker \(the first is metadata.csv:50\)"):
        partition(some, 0, 6, "speaker")


def test_flwr_datasets_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flwr_datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'federated-zo-asr\[demo\]'"):
        partition(UTTERANCES, 0, 4, "iid")
    assert partition(UTTERANCES, 0, 6, "speaker") == list(range(8))


def test_whose_rows_are_all_left_out_has_an_empty_share_where_it_was_counted() -> None:
    rest = [u for u in UTTERANCES if u.columns["speaker"] != "s2"]
    gone = [LeftOut((f"{u.where}: bad",), u.columns) for u in UTTERANCES if u.columns["speaker"] == "s2"]
    shares = Partitions(rest, 5, "speaker", left_out=gone)
    assert all(shares.of(client) for client in range(5))
    shares = Partitions(rest, 6, "speaker", left_out=gone)
    assert [{rest[i].columns["speaker"] for i in shares.of(client)} for client in range(6)] == [
        {"s0"}, {"s1"}, set(), {"s3"}, {"s4"}, {"s5"},
    ]  # fmt: skip
    assert [len(shares.left_out_of(client)) for client in range(6)] == [0, 0, 8, 0, 0, 0]


@pytest.mark.parametrize("by", ["speaker", "iid", "shard:speaker", "dirichlet:speaker:5", "round-robin"])
def test_each_row_that_is_left_out_counts_as_one_clients(by: str) -> None:
    gone = [LeftOut((f"{number}",), {"speaker": name}) for number, name in enumerate(("s1", "", "s1", "x", "y"))]
    gone.append(LeftOut(("unreadable",)))
    shares = Partitions(UTTERANCES, 6, by, left_out=gone)

    counted = [[row.problems[0] for row in shares.left_out_of(client)] for client in range(6)]

    assert sorted(problem for each in counted for problem in each) == sorted(row.problems[0] for row in gone)
    if by == "speaker":
        assert counted == [["1"], ["0", "2", "3"], ["4"], ["unreadable"], [], []]


@pytest.mark.parametrize("by", ["speaker", "shard:speaker", "dirichlet:speaker:0.5"])
def test_rows_without_a_name_are_problems(by: str) -> None:
    nameless = Utterance("metadata.csv:99", Path("a.wav"), "text", {"speaker": ""})
    found = named_rows(Manifest((*UTTERANCES, nameless), ("first",)), by)
    assert found.utterances == tuple(UTTERANCES)
    assert found.problems[0] == "first"
    assert found.problems[1].startswith("metadata.csv:99: got no speaker, by which recordings are shared out")
    alone = Manifest((nameless,), ())
    assert named_rows(alone, by) == alone
    assert named_rows(Manifest(tuple(UTTERANCES), ()), "iid").problems == ()
