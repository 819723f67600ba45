"""Federated test-time adaptation: each speaker is a device without transcripts, all of them improve one model.

Settings are chosen on the development split, dealt to eight devices: `python -m benchmarks.tta.federated --model M`.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import soundfile

from benchmarks.tta.methods import Outcome
from benchmarks.tta.speech import RATE, Spoken, speech
from client.adapt.adapter import Adapter, AdaptSettings
from simulations.cli import parse_settings
from simulations.runner import run_federation
from zo_common.config.run import RunConfig
from zo_common.ledger.file import read_ledger
from zo_common.ledger.replay import replay, restore_state
from zo_common.models.load import load_model


def federated(config: RunConfig, spoken: Sequence[Spoken]) -> Outcome:
    """Simulate the federation on the utterances, then transcribe them under the one model that its ledger gives.

    Forward passes are counted an utterance: a batch of sixteen is sixteen. The bytes stored are the ledger's.
    """
    speakers = sorted({one.speaker for one in spoken})
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        folder, output = Path(directory) / "data", Path(directory) / "out"
        write_untranscribed(folder, spoken)
        run_federation(_placed(config, folder, output), len(speakers))
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
    """Return the utterances that a device sends through the model in all rounds, unperturbed ones included."""
    sides = 2 if config.estimator == "two-sided" else 1
    a_step = (sides * config.num_queries + 1) * min(config.batch_size, utterances)
    return config.num_server_rounds * config.local_steps * a_step


def write_untranscribed(folder: Path, spoken: Sequence[Spoken]) -> None:
    """Write recordings in audiofolder layout, with speakers and without texts."""
    split = folder / "train"
    split.mkdir(parents=True)
    with (split / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("file_name", "speaker"))
        for index, one in enumerate(spoken):
            soundfile.write(split / f"{index:04d}.wav", one.wave, RATE, subtype="FLOAT")
            writer.writerow((f"{index:04d}.wav", one.speaker))


_DEVICES = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--conditions", nargs="+", default=["noise-0.01"])
    parser.add_argument("--utterances", type=int, default=24)
    parser.add_argument("--learning-rates", type=float, nargs="+", required=True)
    parser.add_argument("--rounds", type=int, nargs="+", required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="run-config, one at a time")
    a = parser.parse_args()
    common = parse_settings(a.set) | {"model": a.model}
    for condition, rate, rounds in itertools.product(a.conditions, a.learning_rates, a.rounds):
        spoken = [
            replace(one, speaker=f"device-{index % _DEVICES}")
            for index, one in enumerate(speech(condition, 0, a.utterances, "dev"))
        ]
        config = RunConfig.from_mapping({**common, "learning-rate": rate, "num-server-rounds": rounds})
        outcome = federated(config, spoken)
        wer = outcome.scores(spoken).wer
        print(
            f"{condition} lr {rate:g} {rounds} rounds: WER {wer:.1%}, {outcome.seconds:.1f} s an utterance", flush=True
        )


if __name__ == "__main__":
    main()
