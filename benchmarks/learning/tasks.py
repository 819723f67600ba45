"""Tasks of learning: a model, and speech that it does not know well yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from simulations.models.pretrain_ctc import PRETRAINED, Recipe
from simulations.models.whisper_import import bundled_whisper, bundled_whisper_base
from simulations.speech.corpus import CorpusConfig, write_corpus
from simulations.speech.telephone_prompts import write_prompts
from zo_common.errors import ConfigError

SMALL = PRETRAINED / "wav2vec2-tiny-us"
OTHER_ACCENTS = ("caribbean", "lancashire", "new-york", "scotland", "us")
UTTERANCES = 40  # of each training speaker, as in the demo
NOISE_DBFS = -40.0  # white noise of 0.01 in samples of −1 … 1, as SUTA's (arXiv 2203.14222)


@dataclass(frozen=True)
class Places:
    """Folders of converted models and of recordings; `debian` is where Debian's packages of prompts are unpacked."""

    models: Path = Path("models")
    data: Path = Path("data/learning")
    debian: Path | None = None


@dataclass(frozen=True)
class Task:
    """A model and an audio folder with the splits train, dev and test.

    Attributes:
        partition: how the training speech is shared out among several devices.
    """

    name: str
    model: str
    data: str
    language: str = "en"
    partition: str = "speaker"


def task_of(name: str, places: Places) -> Task:
    """Return a task by name; its model and its speech are made if they are not there.

    Raises:
        ConfigError: an unknown name, or a package that is not installed.
    """
    if name not in TASKS:
        raise ConfigError(f"task is {name!r}, expected one of {', '.join(TASKS)}")
    return TASKS[name](name, places)


def accent_folder(accent: str, places: Places, **changes: Any) -> str:
    """Return the audio folder of a synthetic accent: the demo's voices, numbers and seed, but for `changes`."""
    config = replace(CorpusConfig(accent=accent, utterances_per_speaker=UTTERANCES), **changes)
    name = "-".join([accent, *sorted(changes)])
    return str(write_corpus(places.data / name, config).directory)


def _accent(name: str, places: Places) -> Task:
    accent = "west-midlands" if name == "wm" else name
    return Task(name, str(bundled_whisper(places.models)), accent_folder(accent, places))


def _prompts(name: str, places: Places) -> Task:
    folder = places.data / f"prompts-{name}"
    write_prompts(folder, name, unpacked=places.debian, cache=places.data / "debian")
    # one speaker alone
    return Task(name, str(bundled_whisper_base(places.models)), str(folder), name, "iid")


def _small_ctc(name: str, places: Places) -> Task:
    """Return speech as close to the microphone as in the small model's training, from other voices."""
    trained = Recipe().corpus
    close: dict[str, Any] = {"lead_seconds": trained.lead_seconds, "tail_seconds": trained.tail_seconds}
    unheard = {"test_speakers": ("m6", "f4", "m8", "rob")}
    noise = {"noise_dbfs": NOISE_DBFS} if name == "ctc-noise" else {}
    accent = "us" if noise else "west-midlands"
    return Task(name, str(SMALL), accent_folder(accent, places, **close, **unheard, **noise))


TASKS: dict[str, Callable[[str, Places], Task]] = {
    "wm": _accent,
    "scotland": _accent,
    "caribbean": _accent,
    "ru": _prompts,
    "fr": _prompts,
    "ctc-noise": _small_ctc,
    "ctc-wm": _small_ctc,
}
CTC_TASKS = ("ctc-noise", "ctc-wm")
TITLES = {
    "wm": "West Midlands, Whisper-tiny.en",
    "scotland": "Scottish, Whisper-tiny.en",
    "caribbean": "Caribbean, Whisper-tiny.en",
    "ru": "human Russian, Whisper-base",
    "fr": "human French, Whisper-base",
    "ctc-noise": "noise of 0.01, small CTC model",
    "ctc-wm": "West Midlands, small CTC model",
}
