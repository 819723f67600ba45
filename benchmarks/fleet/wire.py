"""Network traffic of a real deployment, by local steps: bytes of payload, of serialised messages, and of TCP.

Each SuperNode reaches the proxy through a forwarder that counts bytes, TLS included. Rounds are counted between two
entries of `rounds.jsonl`, after the first rounds, which carry introductions and the app. Idle bytes are those of
connected devices that are asked nothing.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from benchmarks.fleet.real_fleet import real_fleet
from benchmarks.harness.rows import RESULTS, amount, spread, store

STEPS = (1, 10, 100)
QUERIES = 8
WARM_ROUNDS = 2
DAY = 86_400.0


def counters(fleet: Any) -> dict[str, dict[str, int]]:
    """Return bytes so far of every device, both ways."""
    return {name: {"up": wire.up, "down": wire.down} for name, wire in fleet.wires.items()}


def since(fleet: Any, before: dict[str, dict[str, int]]) -> dict[str, list[int]]:
    """Return bytes since then, one number a device."""
    now = counters(fleet)
    return {way: [now[name][way] - before[name][way] for name in before] for way in ("up", "down")}


def idle(fleet: Any, seconds: float) -> dict[str, Any]:
    """Return bytes a day of a device that is connected and asked nothing."""
    before, start = counters(fleet), time.monotonic()
    time.sleep(seconds)
    seconds = time.monotonic() - start
    found = since(fleet, before)
    days = {f"{way}_a_day": spread([count * DAY / seconds for count in found[way]]) for way in found}
    return {"seconds": seconds, **days}


def rounds_of(fleet: Any, local_steps: int, rounds: int) -> dict[str, Any]:
    """Return bytes a device and round of one run."""
    last = WARM_ROUNDS + rounds
    run = fleet.start(
        f"steps-{local_steps}", local_steps=local_steps, num_queries=QUERIES, batch_size=1, num_server_rounds=last + 1,
        learning_rate=1e-4, round_timeout=300.0,
    )  # fmt: skip
    run.wait_for_round(WARM_ROUNDS, 300)
    before, start, first = counters(fleet), time.monotonic(), len(run.rows)
    run.wait_for_round(first + rounds - 1, 300)
    counted = len(run.rows) - first
    found, seconds = since(fleet, before), time.monotonic() - start
    rows = run.rows[first : first + counted]
    if run.finish(300) != 0:
        raise SystemExit(f"the run failed:\n{run.said}")
    asked = sum(row["asked"] for row in rows)
    sums = {
        f"{kind}_{way}": sum(row[way][kind] for row in rows) / asked
        for kind in ("payload", "serialised")
        for way in ("up", "down")
    }
    wire = {f"wire_{way}": spread([count / counted for count in found[way]]) for way in found}
    return {"local_steps": local_steps, "rounds": counted, "seconds_a_round": seconds / counted, **sums, **wire}


def table() -> str:
    """Return the table of `docs/results/deployment.md`, beside FedAvg's bytes of `benchmarks.cost.traffic`."""
    found = json.loads((RESULTS / "wire.json").read_text())
    fedavg = json.loads((RESULTS / "traffic.json").read_text())["bytes"]["FedAvg"]
    lines = [
        "| bytes a device and round | payload up | down | serialised up | down | wire up | down | seconds a round |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for entry in found["steps"]:
        counts = [entry[f"{kind}_{way}"] for kind in ("payload", "serialised") for way in ("up", "down")]
        counts += [entry[f"wire_{way}"]["mean"] for way in ("up", "down")]
        cells = " | ".join(amount(count, "B") for count in counts)
        lines.append(f"| {entry['local_steps']} local steps of {QUERIES} | {cells} | {entry['seconds_a_round']:.1f} |")
    cells = " | ".join(amount(fedavg[f"{k}_{w}"], "B") for k in ("payload", "serialised") for w in ("up", "down"))
    lines.append(f"| FedAvg, all weights of Whisper-tiny | {cells} | at least that | at least that | |")
    up, down = (amount(found["idle"][f"{way}_a_day"]["mean"], "B") for way in ("up", "down"))
    lines += ["", f"A device that is connected and asked nothing sends {up} and receives {down} a day."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6, help="rounds that are counted, of each number of local steps")
    parser.add_argument("--idle", type=float, default=60.0, help="seconds of idling that are counted")
    arguments = parser.parse_args()
    with real_fleet() as fleet:
        time.sleep(5)
        resting = idle(fleet, arguments.idle)
        steps = []
        for local_steps in STEPS:
            steps.append(rounds_of(fleet, local_steps, arguments.rounds))
            print(json.dumps(steps[-1]), flush=True)
    print(f"wrote {store('wire', {'devices': 3, 'queries': QUERIES, 'idle': resting, 'steps': steps})}")
    print(table())


if __name__ == "__main__":
    main()
