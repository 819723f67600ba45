"""What a process keeps warm: one engine, one table of recordings, and the data sets used last."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from fake_grid import Memory

from client.device import warm
from client.device.warm import warm_dataset, warm_engine
from zo_common.config.run import RunConfig
from zo_common.errors import ConfigError
from zo_common.speech import whisper as dataset

Settings = Callable[..., RunConfig]


@pytest.fixture(autouse=True)
def own_memory() -> Iterator[Memory]:
    """Each test is a process that has just started."""
    memory = Memory()
    warm._manifest.cache_clear()
    warm._partitions.cache_clear()
    with memory.in_use():
        yield memory


def _counted(monkeypatch: pytest.MonkeyPatch, where: Any, name: str) -> list[tuple[Any, ...]]:
    """Arguments of every call of `where.name` from now on."""
    calls: list[tuple[Any, ...]] = []
    original = getattr(where, name)

    def count(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(where, name, count)
    return calls


def test_one_engine_serves_all_runs_on_a_model(settings: Settings, own_memory: Memory, other_whisper: Path) -> None:
    first = warm_engine(settings())

    assert warm_engine(settings(run_seed=5, learning_rate=1e-4, output="elsewhere")) is first
    assert warm_engine(settings(model=str(other_whisper))) is not first
    assert len(own_memory.engines) == 1  # one model in memory


def test_a_data_set_is_read_once_for_each_device(settings: Settings) -> None:
    config = settings()
    engine = warm_engine(config)

    parts = [warm_dataset(config, engine, partition, 3) for partition in range(3)]

    assert [len(part) for part in parts] == [3, 3, 3]
    assert len({text for part in parts for text in part.texts}) == 9
    assert warm_dataset(config, engine, 1, 3) is parts[1]
    assert len(warm_dataset(config, engine, None, 1)) == 9


def test_another_model_has_data_sets_of_its_own(settings: Settings, other_whisper: Path) -> None:
    """Features and tokens are made by the model's processor."""
    first = warm_dataset(settings(), warm_engine(settings()), 1, 3)
    other = settings(model=str(other_whisper))

    assert warm_dataset(other, warm_engine(other), 1, 3) is not first


@pytest.mark.parametrize("by", ["speaker", "iid", "round-robin"])
def test_the_table_is_read_once_for_all_devices(settings: Settings, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    config = settings(partition_by=by)
    engine = warm_engine(config)
    tables = _counted(monkeypatch, warm, "read_manifest")
    shares = _counted(monkeypatch, warm, "Partitions")

    parts = [warm_dataset(config, engine, partition, 3) for _ in range(2) for partition in range(3)]

    assert len(tables) == len(shares) == 1
    assert sorted(text for part in parts[:3] for text in part.texts) == sorted(
        warm_dataset(config, engine, None, 1).texts
    )


def test_memory_does_not_grow_with_the_number_of_devices(
    settings: Settings, own_memory: Memory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = settings(partition_by="round-robin", feature_cache=str(tmp_path / "features"))
    engine = warm_engine(config)
    computed = _counted(monkeypatch, dataset._FeatureReader, "extract")
    monkeypatch.setattr(warm, "MAX_FEATURE_BYTES", 150_000)  # of about 45 kB each

    first = [warm_dataset(config, engine, partition, 9) for partition in range(9)]
    held = sum(size for size, _ in own_memory.datasets.values())
    again = [warm_dataset(config, engine, partition, 9) for partition in range(9)]

    assert 100_000 < held <= 150_000
    assert len(computed) == 9  # read back, not computed again
    assert again[0] is not first[0]
    assert [part.texts for part in again] == [part.texts for part in first]
    for ours, theirs in zip(again, first, strict=True):
        assert ours.examples[0].features.equal(theirs.examples[0].features)


def test_a_manifest_that_is_kept_holds_no_recordings(settings: Settings, mini_corpus: Path, tmp_path: Path) -> None:
    recordings = sorted((mini_corpus / "train").glob("*.wav"))
    rows = [{"bytes": path.read_bytes(), "path": None} for path in recordings]
    table = datasets.Dataset.from_dict({"audio": rows, "transcription": [path.stem for path in recordings]})
    table.cast_column("audio", datasets.Audio(decode=False)).save_to_disk(tmp_path / "saved")
    config = settings(data=str(tmp_path / "saved"), partition_by="round-robin")

    part = warm_dataset(config, warm_engine(config), 4, 9)
    manifest = warm._manifest(config.data, config.train_split, config.text_column)

    assert part.texts == (recordings[4].stem,)
    assert not any(isinstance(utterance.source, bytes) for utterance in manifest.utterances)
    assert [utterance.audio for utterance in manifest.utterances] == [path.read_bytes() for path in recordings]


def test_what_was_used_last_stays(
    settings: Settings, own_memory: Memory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = settings(partition_by="round-robin")
    engine = warm_engine(config)
    monkeypatch.setattr(warm, "MAX_FEATURE_BYTES", 100_000)

    kept = warm_dataset(config, engine, 0, 9)
    for partition in range(1, 9):
        warm_dataset(config, engine, partition, 9)
        assert warm_dataset(config, engine, 0, 9) is kept
    monkeypatch.setattr(warm, "MAX_FEATURE_BYTES", 0)
    newest = warm_dataset(config, engine, None, 1)

    assert [data for _, data in own_memory.datasets.values()] == [newest]  # one larger than the limit is served


@pytest.mark.parametrize("change", [{"run_seed": 1}, {"skip_bad": True}, {"train_split": "test"}])
def test_another_choice_of_data_is_another_data_set(settings: Settings, change: dict[str, Any]) -> None:
    engine = warm_engine(settings())

    one = warm_dataset(settings(partition_by="iid"), engine, 0, 2)
    other = warm_dataset(settings(partition_by="iid", **change), engine, 0, 2)

    assert other is not one
    if "skip_bad" not in change:  # the run's seed deals the utterances out
        assert other.texts != one.texts


@pytest.mark.parametrize("name", ["model", "data"])
def test_a_setting_that_is_missing_is_named(settings: Settings, name: str) -> None:
    engine = warm_engine(settings())

    with pytest.raises(ConfigError, match=f"{name} is not set"):
        config = settings(**{name: ""})
        warm_engine(config)
        warm_dataset(config, engine, None, 1)
