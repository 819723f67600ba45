"""Which splits there are is known without reading a recording."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from zo_common.config.run import RunConfig
from zo_common.speech.splits import guarded_split, server_split, splits_of


def test_folders_with_a_table_are_splits(mini_corpus: Path, tmp_path: Path) -> None:
    assert splits_of(str(mini_corpus)) == ("test", "train")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "metadata.jsonl").write_text("")
    (tmp_path / "notes").mkdir()
    assert splits_of(str(tmp_path)) == ("dev",)


def test_a_saved_data_set_names_its_splits(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"text": ["a"]})
    datasets.DatasetDict({"train": rows, "validation": rows}).save_to_disk(tmp_path / "saved")
    assert splits_of(str(tmp_path / "saved")) == ("train", "validation")
    rows.save_to_disk(tmp_path / "one")
    assert splits_of(str(tmp_path / "one")) == ()


@pytest.mark.parametrize("ask_hub", [False, True])
def test_no_source_is_not_the_current_directory(
    mini_corpus: Path, monkeypatch: pytest.MonkeyPatch, ask_hub: bool
) -> None:
    monkeypatch.chdir(mini_corpus)
    assert splits_of("", ask_hub=ask_hub) == ()


@pytest.mark.parametrize("content", ["", "[]", '{"splits": 3}', "{", "\xff"])
def test_a_broken_list_names_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "dataset_dict.json").write_text(content, encoding="latin-1")
    assert splits_of(str(tmp_path)) == ()


def test_the_hub_is_asked_only_where_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name: asked.append(name) or ["dev", "test"])
    assert splits_of("some/corpus") == () and not asked
    assert splits_of("some/corpus", ask_hub=True) == ("dev", "test")

    def refuse(name: str) -> list[str]:
        raise ConnectionError(name)

    monkeypatch.setattr(datasets, "get_dataset_split_names", refuse)
    assert splits_of("some/corpus", ask_hub=True) == ()


@pytest.mark.parametrize(
    ("changes", "split"),
    [
        ({}, "dev"),
        ({"eval_split": "dev"}, "valid"),
        ({"train_split": "dev", "eval_split": "valid"}, "valid"),
        ({"guard_split": "test"}, "test"),
        ({"data": "some/corpus", "eval_split": "test"}, "test"),
        ({"data": "some/corpus"}, ""),
    ],
)
def test_device_and_server_take_the_split_that_is_there_for_that(
    tmp_path: Path, changes: dict[str, str], split: str
) -> None:
    for name in ("valid", "train", "dev"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metadata.csv").write_text("")
    config = RunConfig(**{"model": "m", "data": str(tmp_path), **changes})
    assert guarded_split(config) == split
    assert server_split(config) == split


def test_a_server_that_does_not_evaluate_has_no_use_for_the_reported_split(tmp_path: Path) -> None:
    config = RunConfig(model="m", data=str(tmp_path), eval_split="test", evaluate_on="clients")
    assert (guarded_split(config), server_split(config)) == ("test", "")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "metadata.csv").write_text("")
    assert server_split(config) == "dev"
