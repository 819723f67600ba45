"""Checks of a simulation before Ray starts, fast ones first."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

from server.app import check_before_start
from server.run.output import check_output
from zo_common.config.run import RunConfig
from zo_common.errors import ConfigError, DataError
from zo_common.speech.manifest import Manifest, read_manifest
from zo_common.speech.partition import Partitions, named_rows, natural_count


def check_simulation(config: RunConfig, devices: int) -> None:
    """Raise errors that the run would otherwise raise only after the engine has started.

    1. The engine: Ray is installed.
    2. The output folder: writable, unused, with space for the model.
    3. The table of recordings: readable, and a share for each device.
    4. The base model, and all settings against it; the held-out recordings.

    Raises:
        ConfigError, DataError, ModelNotFound, …: one sentence each, with the remedy.
    """
    _check_engine()
    check_output(config)
    manifest = read_train_split(config)
    _check_shares(config, manifest, devices)
    check_before_start(config)


def _check_engine() -> None:
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(
            "the package ray is not installed, expected it for a simulation: run pip install "
            "'federated-zo-asr[simulation]', or train on one machine with zo-asr train"
        )


def devices_of(config: RunConfig) -> int:
    """Return the number of devices: one for each value of the column `partition-by`.

    Raises:
        ConfigError: the recordings do not determine devices.
    """
    found = natural_count(read_train_split(config).utterances, config.partition_by) if config.data else None
    if found is None:
        raise ConfigError("the scenario says neither devices nor a corpus: set devices in [simulation]")
    return found


def read_train_split(config: RunConfig) -> Manifest:
    """Read the table of the devices' recordings; no audio is decoded.

    Raises:
        ConfigError: a row cannot be used (unless `skip-bad`), none can, or there is nothing to read.
    """
    if not config.data:
        raise ConfigError("data is not set: give a folder with metadata.csv, a saved dataset directory or a hub id")
    try:
        manifest = read_manifest(
            config.data, split=config.train_split or None, text_column=config.text_column, need_text=config.needs_text
        )
    except DataError as error:  # the source as a whole: there are no rows to correct or to leave out
        raise ConfigError(str(error)) from None
    manifest = named_rows(manifest, config.partition_by)
    if manifest.problems and not (config.skip_bad and manifest.utterances):
        head = "the data must be corrected before training starts (skip-bad=true trains on what is good):"
        raise ConfigError(f"{head}\n  {DataError(manifest.problems)}")
    return manifest


def _check_shares(config: RunConfig, manifest: Manifest, devices: int) -> None:
    rows, left_out = manifest.utterances, manifest.left_out
    Partitions(rows, devices, config.partition_by, seed=config.run_seed, left_out=left_out).of(devices - 1)
    if config.eval_split and config.evaluate_on == "clients":
        held_out = replace(config, train_split=config.eval_split, partition_by="round-robin", objective="supervised")
        Partitions(read_train_split(held_out).utterances, devices, "round-robin").of(devices - 1)
