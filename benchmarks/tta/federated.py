"""Federated test-time adaptation: each speaker is a device without transcripts, all of them improve one model."""

from __future__ import annotations

import csv
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import soundfile

from benchmarks.tta.methods import Outcome
from benchmarks.tta.speech import RATE, Spoken
from client.adapt import Adapter, AdaptSettings
from simulations.runner import run_simulation
from zo_common.config import RunConfig
from zo_common.ledger_file import read_ledger
from zo_common.models import load_model
from zo_common.replay import replay, restore_state


def federated(config: RunConfig, spoken: Sequence[Spoken]) -> Outcome:
    """Simulate the federation on the utterances, then transcribe them under the one model that its ledger gives.

    Forward passes are counted an utterance: a batch of sixteen is sixteen. The bytes stored are the ledger's.
    """
    speakers = sorted({one.speaker for one in spoken})
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        folder, output = Path(directory) / "data", Path(directory) / "out"
        write_untranscribed(folder, spoken)
        run_simulation(_placed(config, folder, output), len(speakers))
        ledger = read_ledger(output / "ledger.zo", tolerate_torn=False)
        stored = (output / "ledger.zo").stat().st_size
    loaded = load_model(config.model)
    replay(restore_state(loaded.model, ledger.header), ledger)
    adapter = Adapter(loaded, AdaptSettings(steps=0))
    texts = [adapter.transcribe(one.wave) for one in spoken]
    seconds = time.perf_counter() - start
    passes = sum(_passes(config, [one.speaker for one in spoken].count(name)) for name in speakers)
    count = len(spoken)
    return Outcome(tuple(texts), 1 + passes / count, 0.0, seconds / count, stored / count)


def _placed(config: RunConfig, folder: Path, output: Path) -> RunConfig:
    mapping = config.to_mapping() | {"data": str(folder), "output": str(output)}
    return RunConfig.from_mapping(mapping)


def _passes(config: RunConfig, utterances: int) -> int:
    """Utterances that one device sends through the model in all rounds; one pass a step is the unperturbed one."""
    sides = 2 if config.estimator == "two-sided" else 1
    a_step = (sides * config.num_queries + 1) * min(config.batch_size, utterances)
    return config.num_server_rounds * config.local_steps * a_step


def write_untranscribed(folder: Path, spoken: Sequence[Spoken]) -> None:
    """Recordings in audiofolder layout, with speakers and without texts."""
    split = folder / "train"
    split.mkdir(parents=True)
    with (split / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("file_name", "speaker"))
        for index, one in enumerate(spoken):
            soundfile.write(split / f"{index:04d}.wav", one.wave, RATE, subtype="FLOAT")
            writer.writerow((f"{index:04d}.wav", one.speaker))
