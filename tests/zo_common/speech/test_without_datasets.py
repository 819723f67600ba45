"""Recordings on a device without the packages of the extra `datasets`: folders are read, the rest names the extra."""

from __future__ import annotations

import sys
from pathlib import Path

import datasets
import pytest

from zo_common.errors import DataError
from zo_common.models.hub import hub_or_cache
from zo_common.speech.manifest import read_manifest
from zo_common.speech.splits import splits_of

REMEDY = "run pip install 'federated-zo-asr[datasets]'."


@pytest.fixture
def _without(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in ("datasets", "pyarrow", "pandas")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("datasets", "pyarrow", "pandas"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder of `save_to_disk`."""
    datasets.Dataset.from_dict({"transcription": ["a"]}).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.usefixtures("_without")
def test_a_folder_with_metadata_is_read(mini_corpus: Path) -> None:
    manifest = read_manifest(str(mini_corpus), split="train")

    assert manifest.utterances and not manifest.problems


@pytest.mark.usefixtures("_without")
@pytest.mark.parametrize("name", ["train.parquet", "metadata.parquet"])
def test_a_parquet_table_names_the_extra(tmp_path: Path, name: str) -> None:
    (tmp_path / "speech").mkdir()
    (tmp_path / "speech" / name).write_bytes(b"PAR1")

    (problem,) = read_manifest(str(tmp_path / "speech"), split="train").problems

    assert problem == f"speech/{name} needs the package pyarrow, which is not installed: {REMEDY}"


def test_a_saved_data_set_names_the_extra(saved: Path, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("_without")

    with pytest.raises(DataError) as caught:
        read_manifest(str(saved))

    assert str(caught.value) == f"'{saved}' needs the package datasets, which is not installed: {REMEDY}"


@pytest.mark.usefixtures("_without")
def test_a_data_set_of_the_hub_names_path_and_extra() -> None:
    with pytest.raises(DataError) as caught:
        read_manifest("owner/speech", split="train")

    said = str(caught.value)
    assert said.startswith(
        "'owner/speech' is not a folder here, and a data set of the Hugging Face hub needs the package"
    )
    assert said.endswith(f"check the path, or {REMEDY}")
    assert splits_of("owner/speech", ask_hub=True) == ()


@pytest.mark.usefixtures("_without")
def test_a_model_of_the_hub_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr("zo_common.models.hub.hub_answers", lambda: False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    with hub_or_cache("openai/whisper-tiny.en"):
        assert constants.HF_HUB_OFFLINE

    assert not constants.HF_HUB_OFFLINE
