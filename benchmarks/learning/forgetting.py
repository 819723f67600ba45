"""Forgetting: word errors on other accents, before and after training.

python -m benchmarks.learning.forgetting --model models/whisper-tiny.en --ledger results/run/ledger.zo
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.learning.crowd import Crowd
from benchmarks.learning.tasks import OTHER_ACCENTS, Places, Task, accent_folder
from zo_common.ledger.file import read_ledger
from zo_common.ledger.replay import replay, restore_state

UTTERANCES = 48  # of each accent's test split


def others_wer(crowd: Crowd, places: Places, accents: tuple[str, ...] = OTHER_ACCENTS) -> dict[str, float]:
    """Return word error rates of a crowd's present model on the test split of each other accent."""
    found = {}
    for accent in accents:
        data = crowd.read(accent_folder(accent, places))
        found[accent] = crowd.judge(data, UTTERANCES).wer
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--ledger", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Places.data)
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    places = Places(data=arguments.data)
    task = Task("others", arguments.model, accent_folder(OTHER_ACCENTS[0], places))
    crowd = Crowd(task, 1, threads=arguments.threads, cache=Path("results/learning/features"))
    before = others_wer(crowd, places)
    ledger = read_ledger(arguments.ledger, tolerate_torn=False)
    replay(restore_state(crowd.model, ledger.header), ledger)
    after = others_wer(crowd, places)
    for accent in OTHER_ACCENTS:
        print(f"{accent}: WER {before[accent]:.1%} → {after[accent]:.1%}")


if __name__ == "__main__":
    main()
