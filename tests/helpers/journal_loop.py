"""A process that saves ever new states until it is killed.

Imports once; for each line on stdin, a folder and a seed, it forks a child that changes a toy engine at random and
saves it, and prints the child's process id. Killing and reaping: the line `reap PID`.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import torch
from toy_engine import ToyEngine, history, toy_engine

from client.worker.journal import Journal
from zo_common.ledger.snapshot import encode_snapshot

SALTS = 3
ROUNDS = 12
PATTERNS = ("all", "weight")


def histories(pattern: str, checksums: bool) -> list[list[object]]:
    """The histories that children follow, from the base, told by the seed alone."""
    return [
        history(ROUNDS, salt, start=toy_engine(trained_tensors=pattern), checksums=checksums) for salt in range(SALTS)
    ]


def change(engine: ToyEngine, known: dict[tuple[str, bool], list[list[object]]], rng: random.Random) -> ToyEngine:
    """Go on, go back, follow another history, start from a snapshot, or be another engine."""
    what = rng.random()
    pattern, checksums = engine.config.trained_tensors, rng.random() < 0.7
    if what < 0.1:
        return toy_engine(trained_tensors=rng.choice(PATTERNS))
    chosen = known[pattern, checksums][rng.randrange(SALTS)]
    last = rng.randint(1, ROUNDS)
    if what < 0.25:
        target = toy_engine(trained_tensors=pattern)
        target.pretend(chosen[:last])
        data = encode_snapshot(toy_engine(trained_tensors=pattern).state, target.state)
        engine.rebuild()
        engine.start_from(data, last, target.state.checksum())
    elif engine.start_round:
        engine.rebuild()
    else:
        engine.pretend(chosen[:last])
    return engine


def loop(folder: Path, seed: int, known: dict[tuple[str, bool], list[list[object]]]) -> None:
    """Recover, then change and save for ever."""
    rng = random.Random(seed)
    journal = Journal(folder)
    engine = toy_engine()
    saved = journal.saved()
    if saved is not None:
        engine = toy_engine(trained_tensors=saved.settings["trained-tensors"])
        journal.recover(engine, saved)
    print("saving", flush=True)
    while True:
        engine = change(engine, known, rng)
        journal.save(engine)


def main() -> None:
    """Fork a child a line; nothing here starts a thread."""
    torch.set_num_threads(1)
    known = {(p, c): histories(p, c) for p in PATTERNS for c in (True, False)}
    for line in sys.stdin:
        word, rest = line.rstrip("\n").split(" ", 1)
        if word == "reap":
            print(os.waitstatus_to_exitcode(os.waitpid(int(rest), 0)[1]), flush=True)
            continue
        child = os.fork()
        if child == 0:
            try:
                loop(Path(rest), int(word), known)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        print(child, flush=True)


if __name__ == "__main__":
    main()
