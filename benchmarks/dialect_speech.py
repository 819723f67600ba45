"""The demo's dialect as the small CTC model hears it: the same voices and sentences, with as little silence around."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from simulations.corpus import CorpusConfig, write_corpus
from simulations.pretrain_ctc import PRETRAINED, Recipe
from simulations.scenario import read_scenario

SMALL = PRETRAINED / "wav2vec2-tiny-us"
FOLDER = Path("data/dialect-close")
SCENARIO = Path(__file__).parent.parent / "simulations" / "scenarios" / "demo.toml"


def dialect() -> CorpusConfig:
    """The corpus of the demo, in a room like that of the small model's training."""
    corpus, trained = read_scenario(SCENARIO).corpus, Recipe().corpus
    assert corpus is not None
    return replace(corpus, lead_seconds=trained.lead_seconds, tail_seconds=trained.tail_seconds)


def dialect_folder(folder: Path = FOLDER) -> str:
    """The folder of that speech, synthesised if it is not there."""
    return str(write_corpus(folder, dialect()).directory)


def natural_partition(devices: int) -> str:
    """How the training speech is shared out: a speaker a device, or in turn where devices are not as many."""
    return "speaker" if devices == len(dialect().train_speakers) else "round-robin"
