"""Results of the attacks on what devices send: membership and transcripts, over several seeds.

    python -m benchmarks.attacks

A seed has its own speech, directions, batches and devices; noise and samples under a guarantee are the operating
system's, so these numbers differ a little at each run. All rounds are measured at the base model's weights. A killed
run goes on where it was: tables of slopes and finished seeds lie in `--work`, in a folder of the settings.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.attacks import compose, transcripts
from benchmarks.attacks.membership import Attack, private_attack, study, sums_attack
from benchmarks.attacks.settings import Settings
from benchmarks.attacks.slopes import Table, joined, measure_round
from benchmarks.attacks.speech import speech
from benchmarks.harness.result_cache import ResultCache
from benchmarks.harness.rows import spread, store
from client.device.warm import warm_engine
from zo_common.privacy.accountant import noise_for
from zo_common.privacy.mechanism import Mechanism

Row = dict[str, Any]


def slopes(settings: Settings, seed: int, work: Path) -> Table:
    """Return a seed's table; rounds that lie in `work` are not measured again."""
    engine = warm_engine(settings.config)
    spoken = speech(engine, settings, seed)
    rounds = []
    for server_round in range(1, settings.rounds + 1):
        path = work / f"slopes-{seed}-{server_round}.npz"
        if not path.exists():
            started = time.process_time()
            found = measure_round(engine, spoken, settings, seed, server_round)
            partial = path.with_suffix(".partial.npz")
            np.savez(partial, **vars(found))
            os.replace(partial, path)
            print(f"seed {seed} round {server_round}: {time.process_time() - started:.0f} s", flush=True)
        with np.load(path) as arrays:
            rounds.append(Table(**arrays))
    return joined(rounds)


def mechanism(settings: Settings, table: Table, epsilon: float, utterances: int) -> Mechanism:
    """Return the example-level guarantee of a device with so many utterances, clipped at the usual norm."""
    clip_norm = compose.usual_norm(table.pool[:, :-1])
    noise = noise_for(epsilon, settings.delta, settings.rounds, settings.batch, utterances)
    return Mechanism("example", clip_norm, noise, utterances)


def attacks(settings: Settings, table: Table, generator: np.random.Generator) -> Iterator[tuple[str, Row, Attack]]:
    """Return membership under each defence: its name, what noise it has, and the attack."""
    scalars = table.pool[:, :-1]
    for cohort in (1, *settings.cohorts):
        yield f"sum-{cohort}", {}, sums_attack(table.pool, settings, cohort, generator, None)
    for epsilon in settings.target_epsilons:
        private = mechanism(settings, table, epsilon, settings.utterances)
        about = {"noise_multiplier": private.noise_multiplier, "clip_norm": private.clip_norm}
        for name, rest in ((f"example-{epsilon:g}", False), (f"example-{epsilon:g}-rest-known", True)):
            yield name, about, private_attack(scalars, settings, private, generator, knows_rest=rest)
    most = max(settings.cohorts)
    norm = compose.usual_norm(_replies(scalars, settings, generator))
    for epsilon in settings.target_epsilons:
        noise = noise_for(epsilon, settings.delta, settings.rounds)
        about = {"noise_multiplier": noise, "clip_norm": norm}
        yield f"device-{epsilon:g}-{most}", about, sums_attack(scalars, settings, most, generator, (norm, noise))


def _replies(scalars: compose.Array, settings: Settings, generator: np.random.Generator) -> compose.Array:
    """Return plain replies of some devices, (R, q, devices)."""
    columns = generator.integers(settings.pool, size=(settings.pool, settings.batch))
    return np.stack([compose.plain_scalars(rows, columns).T for rows in scalars])


def seed_row(settings: Settings, table: Table, seed: int) -> Row:
    """Return all of a seed's numbers."""
    generator = np.random.default_rng(seed)
    membership: Row = {}
    for name, about, attack in attacks(settings, table, generator):
        membership[name] = {**about, **study(attack, settings, generator)}
        last = membership[name]["rounds"][-1]
        print(f"seed {seed} {name}: step {membership[name]['step']}, all rounds {last}", flush=True)
    guesses: Row = {}
    for size in settings.sizes:
        for epsilon in (None, *settings.target_epsilons):
            private = None if epsilon is None else mechanism(settings, table, epsilon, size)
            key = f"{'none' if epsilon is None else f'example-{epsilon:g}'}-{size}"
            guesses[key] = transcripts.guess(table, settings, size, private, generator)
            print(f"seed {seed} {key}: {guesses[key]}", flush=True)
    return {"seed": seed, "membership": membership, "transcripts": guesses}


def over_seeds(rows: list[Row]) -> Row:
    """Return the rows with a spread in place of every number of `rows`, which are alike."""
    return _together([{key: value for key, value in row.items() if key != "seed"} for row in rows])


def _together(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, dict):
        return {key: _together([value[key] for value in values]) for key in first}
    if isinstance(first, list):
        return [_together(list(each)) for each in zip(*values, strict=True)]
    return spread(values)


def folder_of(work: Path, about: Row) -> Path:
    """Return where tables and rows of these settings lie."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    folder = work / digest
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("results/privacy"))
    parser.add_argument("--rounds", type=int, default=Settings.rounds)
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    settings = replace(Settings(), rounds=arguments.rounds)
    about = json.loads(json.dumps(asdict(settings) | {"model": Path(settings.model).name}))
    folder = folder_of(arguments.work, about)
    cache = ResultCache(folder / "rows.jsonl")
    rows = []
    for seed in arguments.seeds:
        table = slopes(settings, seed, folder)
        rows.append(cache(["seed", seed], partial(seed_row, settings, table, seed)))
    numbers = {
        "seeds": arguments.seeds,
        "settings": about,
        "chance": transcripts.chance(settings.candidates),
        **over_seeds(rows),
    }
    print(f"wrote {store('privacy', numbers)}")


if __name__ == "__main__":
    main()
