"""Speech synthesis: determinism, order independence, speakers and errors."""

from __future__ import annotations

import hashlib
import importlib
import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

pytest.importorskip("espeakng_loader")

from simulations.speech import espeak
from simulations.speech.espeak import ACCENTS, Speaker, list_variants, synthesize
from zo_common.errors import ConfigError

TEXTS = ("Turn off the kitchen lights.", "Where is my parcel?")
# Breathy (f2, f3), Klatt (adam) and plain voices keep different state inside the library.
SPEAKERS = (
    Speaker("west-midlands", "m1", rate=150, pitch=40),
    Speaker("scotland", "f2"),
    Speaker("caribbean", "f3", rate=175),
    Speaker("new-york", "Mario"),
    Speaker("us", "adam", pitch=60),
)


@pytest.mark.parametrize("accent", ACCENTS)
def test_every_accent_gives_speech(accent: str) -> None:
    wave = synthesize(TEXTS[0], Speaker(accent, "m1"))
    assert wave.dtype == np.float32
    assert wave.ndim == 1
    assert 1.0 < len(wave) / 16_000 < 4.0
    assert 0.01 < float(np.abs(wave).max()) <= 1.0


def test_order_of_calls_does_not_matter() -> None:
    jobs = [(text, speaker) for text in TEXTS for speaker in SPEAKERS]
    first = {job: synthesize(*job) for job in jobs}
    rng = random.Random(0)
    for job in rng.sample(jobs, len(jobs)) + rng.choices(jobs, k=20):
        np.testing.assert_array_equal(synthesize(*job), first[job])


def test_same_samples_in_another_process() -> None:
    code = (
        "import hashlib; from simulations.speech.espeak import Speaker, synthesize; "
        "synthesize('Something else first.', Speaker('us', 'm3')); "
        f"print(hashlib.sha256(synthesize({TEXTS[0]!r}, Speaker('scotland', 'f2')).tobytes()).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == hashlib.sha256(synthesize(TEXTS[0], SPEAKERS[1]).tobytes()).hexdigest()


def test_accent_variant_rate_and_pitch_all_change_the_sound() -> None:
    base = synthesize(TEXTS[0], Speaker("us", "m1"))
    for other in (Speaker("scotland", "m1"), Speaker("us", "f1"), Speaker("us", "m1", pitch=60)):
        assert not np.array_equal(synthesize(TEXTS[0], other), base)
    assert len(synthesize(TEXTS[0], Speaker("us", "m1", rate=200))) < 0.9 * len(base)


def test_sampling_rate_scales_the_length() -> None:
    lengths = {rate: len(synthesize(TEXTS[1], SPEAKERS[0], rate)) / rate for rate in (8_000, 16_000, 22_050)}
    assert max(lengths.values()) - min(lengths.values()) < 0.001


def test_variants_hold_the_plain_voices() -> None:
    names = list_variants()
    assert {f"m{i}" for i in range(1, 9)} | {f"f{i}" for i in range(1, 6)} <= set(names)
    assert names == sorted(names)
    assert not any(" " in name for name in names)


def test_speaker_id() -> None:
    assert Speaker("west-midlands", "m1").id == "west-midlands-m1"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"accent": "martian"}, "west-midlands"),
        ({"variant": "nobody"}, "list_variants"),
        ({"variant": ""}, "list_variants"),
        ({"variant": "../m1"}, "list_variants"),
        ({"rate": 5}, "80 to 450"),
        ({"pitch": 100}, "0 to 99"),
    ],
)
def test_wrong_speakers_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Speaker(**{"accent": "us", "variant": "m1", **settings})


@pytest.mark.parametrize(("text", "rate"), [("", 16_000), (" \n", 16_000), ("a\0b", 16_000), ("Hello.", 0)])
def test_wrong_requests_are_refused(text: str, rate: int) -> None:
    with pytest.raises(ConfigError):
        synthesize(text, SPEAKERS[0], rate)


def test_a_failed_call_leaves_later_ones_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = synthesize(TEXTS[0], SPEAKERS[0])
    with monkeypatch.context() as patch:
        patch.setitem(espeak.ACCENTS, "us", "xx-no-such-voice")
        with pytest.raises(ConfigError, match="no voice"):
            synthesize(TEXTS[0], Speaker("us", "m1"))
    np.testing.assert_array_equal(synthesize(TEXTS[0], SPEAKERS[0]), before)


def test_missing_package_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ConfigError, match=r"pip install 'federated-zo-asr\[demo\]'"):
        synthesize(TEXTS[0], SPEAKERS[0])


def test_unreadable_data_is_an_error_not_an_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = importlib.import_module("espeakng_loader")
    monkeypatch.setattr(loader, "get_data_path", lambda: "/no/such/folder")
    with pytest.raises(ConfigError, match="cannot read its data"):
        synthesize(TEXTS[0], SPEAKERS[0])
