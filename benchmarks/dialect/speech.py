"""The demo's dialect, for benchmarks of two models, and how its training speech is shared out among devices."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from simulations.models.pretrain_ctc import PRETRAINED, Recipe
from simulations.models.whisper_import import bundled_whisper
from simulations.scenario import read_scenario
from simulations.speech.corpus import CorpusConfig, write_corpus

SMALL = PRETRAINED / "wav2vec2-tiny-us"
DATA = Path("data")
SCENARIO = Path(__file__).parent.parent.parent / "simulations" / "scenarios" / "demo.toml"


def whisper() -> str:
    """Return the folder of the demo's model."""
    return str(bundled_whisper(Path("models")))


def dialect(model: str) -> CorpusConfig:
    """Return the demo's corpus; for the small CTC model with as little silence around as in its training."""
    corpus, trained = read_scenario(SCENARIO).corpus, Recipe().corpus
    assert corpus is not None
    if Path(model).name != SMALL.name:
        return corpus
    return replace(corpus, lead_seconds=trained.lead_seconds, tail_seconds=trained.tail_seconds)


def dialect_folder(model: str, data: Path = DATA) -> str:
    """Return the folder of that speech, synthesised if it is not there; the demo's own where it is the same."""
    config = dialect(model)
    same = config == read_scenario(SCENARIO).corpus
    return str(write_corpus(data / (f"demo-{config.seed}" if same else f"demo-close-{config.seed}"), config).directory)


def natural_partition(devices: int, speakers: int = len(CorpusConfig().train_speakers)) -> str:
    """Return how the training speech is shared out: a speaker a device, or in turn where devices are not as many."""
    return "speaker" if devices == speakers else "round-robin"
