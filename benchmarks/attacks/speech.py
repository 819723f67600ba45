"""The utterances of the attacks: sentences of the grammar in the voices of one accent, as a device reads them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.attacks.settings import Settings
from client.device.engine import Engine
from simulations.speech.corpus import SPLITS, CorpusConfig, corpus_speakers, in_room
from simulations.speech.espeak import synthesize
from simulations.speech.sentences import sentences
from zo_common.models.ctc.text import ctc_labels
from zo_common.speech.ctc import CTCDataset
from zo_common.speech.recordings import WaveExample

_OTHER_VOICE = 5  # places further on in the list of voices: another one for every sentence


@dataclass(frozen=True)
class Speech:
    """A seed's utterances.

    Attributes:
        pool: the population.
        echoes: the first sentences of the pool, each in another voice.
    """

    pool: CTCDataset
    echoes: CTCDataset


def speech(engine: Engine, settings: Settings, seed: int) -> Speech:
    """Return the utterances of a seed: its own sentences, rates, pitches and room tone."""
    config = CorpusConfig(accent=settings.accent, seed=seed, lead_seconds=0.2, tail_seconds=0.15)
    voices = [voice for split in SPLITS for voice in corpus_speakers(config)[split]]
    rate, classes = config.sampling_rate, engine.model.config.vocab_size

    def read(index: int, text: str, further: int) -> WaveExample:
        voice = voices[(index + further) % len(voices)]
        wave = in_room(synthesize(text, voice, rate), config, key=f"{voice.id}/{index}")
        labels = tuple(ctc_labels(engine.processor.tokenizer, text, classes))
        return WaveExample(torch.from_numpy(wave)[None], len(wave) / rate, text, labels, f"{voice.id}/{index}")

    texts = sentences(settings.pool, seed)
    extractor = engine.processor.feature_extractor
    pool = tuple(read(index, text, 0) for index, text in enumerate(texts))
    echoes = tuple(read(index, text, _OTHER_VOICE) for index, text in enumerate(texts[: settings.candidates]))
    return Speech(CTCDataset(pool, extractor), CTCDataset(echoes, extractor))
