"""Fuzz every reader of untrusted bytes for as long as asked: `python -m tests.fuzz --inputs 1000000`.

The same seed gives the same inputs. Ends with 1 and the bytes of each failure, if there is any.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parent / "helpers"))

WEIGHED = 50  # every so many inputs memory is measured
MEMORY = 8 << 30  # of address space, libraries included


def main() -> int:
    """Inputs in turn to every target, until there were enough or the time is over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[], help="targets by name")
    parser.add_argument("--without", nargs="+", default=[], help="targets to leave out, such as the slow ones")
    arguments = parser.parse_args()
    from fuzz_targets import targets
    from fuzzing import Failure, draw, feed

    known = {
        name: target
        for name, target in targets().items()
        if name not in arguments.without and (not arguments.only or name in arguments.only)
    }
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    rng = random.Random(arguments.seed)
    start, done = time.monotonic(), 0
    accepted, seconds, failures = dict.fromkeys(known, 0), dict.fromkeys(known, 0.0), dict.fromkeys(known, 0)
    while done < arguments.inputs and time.monotonic() - start < 60 * arguments.minutes:
        for name, target in known.items():
            begun = time.process_time()
            data = draw(target, rng)
            try:
                accepted[name] += feed(target, data, weigh=done // len(known) % WEIGHED == 0)
            except Failure as failure:
                failures[name] += 1
                if failures[name] <= 3:
                    print(f"FAILURE in {name}: {failure}", flush=True)
            seconds[name] += time.process_time() - begun
            done += 1
    rounds = max(1, done // len(known))
    for name in known:
        each = 1e6 * seconds[name] / rounds
        print(
            f"{name:<18} {rounds:>8} inputs, {accepted[name] / rounds:6.1%} accepted, {each:6.0f} µs each", flush=True
        )
    minutes = (time.monotonic() - start) / 60
    print(f"{done} inputs to {len(known)} readers in {minutes:.1f} min, {sum(failures.values())} failures")
    return int(any(failures.values()))


if __name__ == "__main__":
    sys.exit(main())
