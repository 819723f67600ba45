"""The scripts of `docs/examples`, each in a process of its own, as a reader of the page runs them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
from tiny_ctc import RATE, noise_waves

from zo_common import read_ledger

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
SMALL_CTC = ROOT / "simulations" / "models" / "pretrained" / "wav2vec2-tiny-us"


def _run(folder: Path, script: str, *arguments: str | Path) -> str:
    """What a script prints."""
    search = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": search},
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def _found(pattern: str, said: str) -> tuple[str, ...]:
    match = re.search(pattern, said)
    assert match is not None, said
    return match.groups()


def test_steps_on_any_module_lower_its_loss(tmp_path: Path) -> None:
    said = _run(tmp_path, "zo_step.py")

    assert re.search(r"of the last step:( -?\d+\.\d{3}){8}\n", said)
    before, after = _found(r"loss (\d+\.\d+) -> (\d+\.\d+), checksum [0-9a-f]{16}\n", said)
    assert float(after) < 0.5 * float(before)


def test_any_module_is_trained(tmp_path: Path) -> None:
    said = _run(tmp_path, "train_module.py", tmp_path / "run")

    before, after, checksum = _found(r"loss (\d+\.\d+) -> (\d+\.\d+), checksum ([0-9a-f]{16})\n", said)
    assert float(after) < 0.5 * float(before)
    assert read_ledger(tmp_path / "run" / "ledger.zo").records[-1].checksum == int(checksum, 16)


@pytest.mark.slow
def test_training_on_speech(mini_corpus: Path, tmp_path: Path) -> None:
    said = _run(tmp_path, "train_speech.py", mini_corpus, SMALL_CTC)

    assert "round 1: loss " in said and "round 2: loss " in said
    _found(r"WER \d+\.\d% -> \d+\.\d%, checksum [0-9a-f]{16}\n", said)


def test_a_recording_is_adapted_to(tmp_path: Path) -> None:
    recording = tmp_path / "talk.wav"
    soundfile.write(recording, noise_waves(RATE)[0], RATE)

    (tmp_path / "adapt_recording.py").write_bytes((EXAMPLES / "adapt_recording.py").read_bytes())
    said = _run(
        tmp_path, str(tmp_path / "adapt_recording.py"), recording, "--steps", "3"
    )  # without the checkout around it

    assert "before: " in said and "after:  " in said
    first, last = _found(r"3 steps, objective (\d\.\d+) -> (\d\.\d+)\n", said)
    assert float(last) < 1.01 * float(first)


def test_a_recording_at_another_rate_is_refused(tmp_path: Path) -> None:
    recording = tmp_path / "talk.wav"
    soundfile.write(recording, noise_waves(RATE)[0], RATE // 2)

    with pytest.raises(AssertionError, match="at 8000 Hz, expected mono at 16000 Hz"):
        _run(tmp_path, "adapt_recording.py", recording)


@pytest.mark.slow
def test_a_simulation_and_the_replay_of_its_ledger(mini_corpus: Path, tmp_path: Path) -> None:
    said = _run(tmp_path, "simulate.py", mini_corpus, SMALL_CTC)

    (checksum,) = _found(r"WER \d+\.\d% -> \d+\.\d%, checksum ([0-9a-f]{16})\n", said)
    rounds, output = _found(r"(\d+) rounds in (results/\S+-example)\n", said)
    assert int(rounds) >= 2  # one more where the guard went back to a better state
    ledger = tmp_path / output / "ledger.zo"
    assert read_ledger(ledger).records[-1].checksum == int(checksum, 16)

    replayed = _run(tmp_path, "replay_ledger.py", ledger, "--output", tmp_path / "adapted")

    assert f"{rounds} rounds, " in replayed and f"checksum {checksum}\n" in replayed
    saved = (tmp_path / output / "model" / "model.safetensors").read_bytes()
    assert (tmp_path / "adapted" / "model.safetensors").read_bytes() == saved


def test_the_simulation_takes_ten_lines() -> None:
    code = (EXAMPLES / "simulate.py").read_text().splitlines()

    assert len([line for line in code if line and not line.startswith('"""')]) <= 10
