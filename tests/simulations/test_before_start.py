"""What is wrong with a simulation is told before its engine starts, in one sentence with the remedy."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from server.run import output as run_output
from simulations.before_start import check_simulation, devices_of
from zo_common.config.run import RunConfig
from zo_common.errors import ConfigError
from zo_common.models.export import count_parameters
from zo_common.models.load import load_model

Settings = Callable[..., RunConfig]


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model, which may be large, is loaded after all that is fast to know."""
    monkeypatch.setattr("simulations.before_start.check_before_start", lambda config: pytest.fail("it was loaded"))


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("devices", "changes", "words"),
    [
        (
            2,
            {},
            ("2 devices were asked for, but the data has 3 values of speaker", "have 3 devices (devices in [simulat"),
        ),
        (4, {}, ("4 devices were asked for, but the data has 3 values of speaker", "num-supernodes of flwr run")),
        (10, {"partition_by": "iid"}, ("10 devices share 9 utterances", "have fewer devices")),
        (4, {"eval_split": "test", "evaluate_on": "clients", "partition_by": "iid"}, ("4 devices share 3 utterances",)),
        (3, {"partition_by": "accent"}, ("Column 'accent' not found, the data has speaker",)),
        (3, {"data": "/nowhere/speech"}, ("'/nowhere/speech' is not there, expected a folder",)),
        (3, {"data": ""}, ("data is not set",)),
        (3, {"text_column": "text"}, ("text column 'text' not found",)),
        (3, {"output": "/proc/nothing/out"}, ("output /proc/nothing/out cannot be written", "name another")),
    ],
)
def test_told_before_the_model_is_loaded(
    settings: Settings, devices: int, changes: dict[str, str], words: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as told:
        check_simulation(settings(**changes), devices)

    for word in words:
        assert word in str(told.value)


@pytest.mark.usefixtures("no_model")
def test_an_output_whose_disk_is_too_full(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tiny_whisper: Path
) -> None:
    config = settings()
    weights = 4 * sum(p.numel() for p in load_model(config.model).model.parameters())
    assert 4 * count_parameters(tiny_whisper) == weights
    need = weights + run_output.SPARE_BYTES
    monkeypatch.setattr(run_output.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, need - 1))

    with pytest.raises(ConfigError, match=r"has \d+ MiB free, the run leaves up to \d+ MiB .*: free some space"):
        check_simulation(config, 3)

    run_output.check_output(settings(server_model=False, output=config.output + "-relay"))  # which leaves no model


def test_bad_rows_are_told_before_the_engine_starts(settings: Settings, mini_corpus: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(mini_corpus, data)
    table = data / "train" / "metadata.csv"
    table.write_text(table.read_text() + "gone.wav,what is not there,ada\n")

    with pytest.raises(ConfigError, match=r"corrected before training starts[\s\S]*train/metadata.csv:11: .*gone.wav"):
        check_simulation(settings(data=str(data)), 3)

    check_simulation(settings(data=str(data), skip_bad=True), 3)


@pytest.mark.usefixtures("no_model")
def test_a_missing_engine_is_told_with_its_extra(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)

    with pytest.raises(ConfigError, match=r"ray is not installed.*pip install 'federated-zo-asr\[simulation\]'"):
        check_simulation(settings(), 3)


def test_all_is_well(settings: Settings) -> None:
    check_simulation(settings(), 3)


def test_without_a_number_each_speaker_is_a_device(settings: Settings) -> None:
    assert devices_of(settings()) == 3
    with pytest.raises(ConfigError, match=r"set devices in \[simulation\]"):
        devices_of(settings(partition_by="iid"))


@pytest.mark.slow
def test_a_command_with_too_many_devices_never_starts_ray(ctc_settings: Settings, tmp_path: Path) -> None:
    config = ctc_settings()
    (tmp_path / "many.toml").write_text(
        f"[simulation]\ndevices = 5\n[run]\nmodel = '{config.model}'\ndata = '{config.data}'\n"
    )

    done = subprocess.run(
        [sys.executable, "-m", "simulations.cli", "run", "many.toml", "--output", "out"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: 5 devices were asked for, but the data has 3 values of speaker")
    assert "Ray" not in done.stdout


@pytest.mark.slow
def test_the_home_folder_in_all_settings_of_a_scenario(tiny_wav2vec2: Path, mini_corpus: Path, tmp_path: Path) -> None:
    """Its speakers have names in other scripts, and are counted."""
    home = tmp_path / "home"
    shutil.copytree(tiny_wav2vec2, home / "ctc")
    shutil.copytree(mini_corpus, home / "data")
    names = {"ada": "अदा", "ben": "本", "cleo": "Κλειώ", "dora": "โดรา"}
    for table in home.glob("data/*/metadata.csv"):
        rows = list(csv.reader(table.read_text().splitlines()))
        with table.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([rows[0], *([*row[:2], names.get(row[2], row[2])] for row in rows[1:])])
    (tmp_path / "home.toml").write_text(
        "[run]\nmodel = '~/ctc'\ndata = '~/data'\noutput = '~/आउट'\nfeature-cache = '~/cache'\neval-split = 'test'\n"
        "guard-split = 'none'\nnum-queries = 2\nnum-server-rounds = 1\nlearning-rate = 1e-4\n"
    )

    done = subprocess.run(
        [sys.executable, "-m", "simulations.cli", "run", "home.toml"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=200,
        env=os.environ | {"HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip

    assert "Traceback" not in done.stderr + done.stdout, done.stderr
    assert (home / "आउट" / "model" / "config.json").exists(), done.stderr + done.stdout
    assert list((home / "cache").glob("loss-*.json"))  # what a CTC model leaves there
    assert not (tmp_path / "~").exists()
    assert "3 devices" in done.stdout and "आउट" in done.stdout
