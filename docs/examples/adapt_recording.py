"""Adaptation of a speech model to one recording without its text. `adapt_recording.py talk.wav`"""

from __future__ import annotations

import argparse
from pathlib import Path

import soundfile

import simulations
from client.adapt import Adapter, AdaptSettings
from zo_common import load_model

SMALL_CTC = Path(simulations.__file__).parent / "models/pretrained/wav2vec2-tiny-us"

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("recording", help="mono, at the model's sampling rate (16 kHz for Wav2Vec2 and Whisper)")
parser.add_argument("--model", default=str(SMALL_CTC), help="hub id or directory; default: the small CTC model")
parser.add_argument("--steps", type=int, help="at most; default: that of the kind of model")
arguments = parser.parse_args()

adapter = Adapter(load_model(arguments.model), AdaptSettings(steps=arguments.steps))
wave, rate = soundfile.read(arguments.recording, dtype="float32")
if wave.ndim != 1 or rate != adapter.rate:
    parser.error(f"{arguments.recording} has shape {wave.shape} at {rate} Hz, expected mono at {adapter.rate} Hz")

result = adapter.adapt(wave)  # the model is back at its base weights afterwards
print(f"before: {result.before}")
print(f"after:  {result.after}")
if result.objectives:
    print(f"{len(result.objectives)} steps, objective {result.objectives[0]:.4f} -> {result.objectives[-1]:.4f}")
else:
    print(f"nothing to adapt to: {result.note}")
