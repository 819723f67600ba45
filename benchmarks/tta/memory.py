"""Peak memory of adapting to one utterance over that of transcribing it: `python -m benchmarks.tta.memory --model M`.

Every number is a fresh process's. It first does the whole work once on a short utterance and lets go of the model; what
is then resident (libraries, compiled kernels) does not count. Then come the model and `SECONDS` of sound, and the
largest resident memory until the end: weights, activations, optimiser state and everything else.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from typing import Any

from benchmarks.cost.memory import MALLOC, Resident

METHODS = ("inference", "zo", "adam")
SECONDS = 8.0  # of speech in the utterance
_SHORT = 1.0


def work(method: str, model: str, seconds: float) -> None:
    """Load the model, transcribe or adapt to an utterance, let go of it all."""
    import numpy as np

    from benchmarks.tta.methods import Passes, first_order, zeroth_order
    from benchmarks.tta.speech import RATE, Spoken, speech
    from client.adapt.adapter import Adapter, AdaptSettings
    from zo_common.models.load import load_model

    sound = np.concatenate([one.wave for one in speech("clean", 0, 6)])
    spoken = [Spoken(np.tile(sound, 2)[: int(seconds * RATE)], "", "")]
    loaded = load_model(model)
    settings = AdaptSettings(steps=2, patience=0)
    if method == "inference":
        Adapter(loaded, settings).transcribe(spoken[0].wave)
    elif method == "zo":
        zeroth_order(loaded, Passes(loaded), spoken, settings, None)
    else:
        first_order(loaded, Passes(loaded), spoken, settings, 1e-5, 2)


def child(method: str, model: str) -> int:
    """Return bytes that one method needs in this process."""
    meter = Resident()
    work(method, model, _SHORT)
    before = meter.start()
    work(method, model, SECONDS)
    return meter.peak() - before


def over_inference(model: str, repeats: int = 3) -> dict[str, Any]:
    """Return median bytes of every method, and of those that adapt the ratio to inference."""
    found: dict[str, list[int]] = {method: [] for method in METHODS}
    for _ in range(repeats):
        for method in METHODS:
            command = [sys.executable, "-m", "benchmarks.tta.memory", "--model", model, "--child", method]
            done = subprocess.run(command, env=os.environ | MALLOC, capture_output=True, text=True, check=True)
            found[method].append(int(json.loads(done.stdout.splitlines()[-1])))
    middle = {method: statistics.median(values) for method, values in found.items()}
    ratios = {method: middle[method] / middle["inference"] for method in METHODS[1:]}
    return {"seconds_of_speech": SECONDS, "bytes": middle, "over_inference": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--child", choices=METHODS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(arguments.child, arguments.model)))
    else:
        print(json.dumps(over_inference(arguments.model), indent=1))


if __name__ == "__main__":
    main()
