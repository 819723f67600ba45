"""Two hundred rounds of a real deployment with seeded faults: completion, bit-exactness and memory.

Every few rounds something dies or is cut, drawn by `--seed`: a worker, a SuperNode, the SuperLink, the ServerApp (the
run is then resumed), or a device's network for a while. At the end ledger, an independent replay and all devices must
hold one state. Memory is the resident size of every process, compared early and late in its life.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.fleet.agreement import check_agreement, contributors
from benchmarks.fleet.real_fleet import real_fleet
from benchmarks.harness.rows import RESULTS, store

FAULTS = ("worker killed", "SuperNode ended", "SuperNode killed", "network cut", "SuperLink killed", "ServerApp killed")
SERVERS = ("SuperLink killed", "ServerApp killed")
VICTIMS = ("anna", "ben")  # the third device's worker lives through all of it: its memory is watched
LOOK_SECONDS = 5.0
MB = 1 << 20


@dataclass
class Memory:
    """Resident sizes of a fleet's long-lived processes over time, by name and process id."""

    fleet: Any
    seen: dict[tuple[str, int], list[tuple[float, int]]] = field(default_factory=dict)
    end: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        """Record memory until `end`."""
        while not self.end.wait(LOOK_SECONDS):
            for name, pid in self._alive():
                size = resident(pid)
                if size:
                    self.seen.setdefault((name, pid), []).append((time.monotonic(), size))

    def _alive(self) -> list[tuple[str, int]]:
        children = self.fleet.children
        targets = [
            "superlink",
            "superexec",
            "proxy",
            *(f"{kind}-{n}" for n in self.fleet.names for kind in ("worker", "supernode")),
        ]
        return [(name, children[name].process.pid) for name in targets] + [
            ("ServerApp", pid) for pid in children.of_marker("flwr-serverapp")[:1]
        ]

    def growth(self, least_seconds: float) -> dict[str, dict[str, float]]:
        """Return median MB in the second and the last fifth of each process's longest life, if long enough."""
        lives: dict[str, list[tuple[float, int]]] = {}
        for (name, _), life in self.seen.items():
            if life[-1][0] - life[0][0] >= least_seconds and len(life) > len(lives.get(name, [])):
                lives[name] = life
        return {name: _compare(life) for name, life in sorted(lives.items())}


def _compare(life: list[tuple[float, int]]) -> dict[str, float]:
    fifth = max(1, len(life) // 5)
    early = statistics.median(size for _, size in life[fifth : 2 * fifth])
    late = statistics.median(size for _, size in life[-fifth:])
    minutes = (life[-1][0] - life[0][0]) / 60
    return {"early_mb": early / MB, "late_mb": late / MB, "ratio": late / early, "minutes": minutes}


def resident(pid: int) -> int:
    """Return resident bytes of a process, 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def describe(pid: int) -> str:
    """Return a process, its parent, age and command, for a message."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:150]
    except OSError:
        return f"{pid} is gone"
    return f"{pid} of {stat[1]}, started at tick {stat[19]}: {command}"


@dataclass
class Soak:
    """The run and what is done to it."""

    fleet: Any
    run: Any
    draw: random.Random
    rounds: int
    done: list[tuple[int, str]] = field(default_factory=list)
    resumed: int = 0

    def schedule(self, faults: int) -> list[tuple[int, str]]:
        """Return rounds and faults; those that end a server are in the first half, to watch its memory after."""
        places = sorted(self.draw.sample(range(3, self.rounds - 5), faults))
        kinds = [FAULTS[n % len(FAULTS)] for n in range(faults)]
        servers = [kind for kind in kinds if kind in SERVERS]
        others = [kind for kind in kinds if kind not in SERVERS]
        early = [n for n, place in enumerate(places) if place < self.rounds / 2]
        for_servers = set(self.draw.sample(early, min(len(servers), len(early))))
        self.draw.shuffle(servers)
        self.draw.shuffle(others)
        return [(at, servers.pop() if n in for_servers else others.pop()) for n, at in enumerate(places) if others]

    def harm(self, kind: str) -> None:
        """Cause the fault."""
        name = self.draw.choice(VICTIMS)
        children = self.fleet.children
        actions: dict[str, Callable[[], None]] = {
            "worker killed": lambda: children.kill(f"worker-{name}"),
            "SuperNode ended": lambda: children.kill(f"supernode-{name}", signal.SIGTERM),
            "SuperNode killed": lambda: children.kill(f"supernode-{name}"),
            "network cut": lambda: self._cut(name, self.draw.uniform(3, 20)),
            "SuperLink killed": lambda: children.kill("superlink"),
            "ServerApp killed": self._kill_server_app,
        }
        actions[kind]()

    def _cut(self, name: str, seconds: float) -> None:
        wire = self.fleet.wires[name]
        wire.cut()
        threading.Timer(seconds, wire.heal).start()

    def _kill_server_app(self) -> None:
        found = self.fleet.children.of_marker("flwr-serverapp")
        if len(found) > 1:
            print("\n".join(f"  one of {len(found)}: {describe(pid)}" for pid in found), flush=True)
        for pid in found:
            os.kill(pid, signal.SIGKILL)
        time.sleep(1)
        self.run.process.send_signal(signal.SIGINT)  # nobody watches the run that failed

    def go(self, faults: int, deadline: float) -> bool:
        """Run to the last round; False where the time is over first."""
        plan = self.schedule(faults)
        while time.monotonic() < deadline:
            reached = int(self.run.rows[-1]["server_round"]) if self.run.rows else 0
            if plan and reached >= plan[0][0]:
                at, kind = plan.pop(0)
                print(f"round {reached}: {kind}", flush=True)
                self.harm(kind)
                self.done.append((at, kind))
            ended = self.run.process.poll()
            if ended is not None and reached >= self.rounds:
                return bool(ended == 0)
            if ended is not None:
                self.run = self.fleet.resume(self.run)
                self.resumed += 1
            time.sleep(0.5)
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--faults", type=int, default=18)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60.0, help="at most")
    arguments = parser.parse_args()
    with real_fleet() as fleet:
        start = time.monotonic()
        run = fleet.start(
            "soak", num_server_rounds=arguments.rounds, min_clients=1, round_timeout=30.0, learning_rate=0.005
        )
        soak = Soak(fleet, run, random.Random(arguments.seed), arguments.rounds)
        memory = Memory(fleet)
        watcher = threading.Thread(target=memory.watch, daemon=True)
        watcher.start()
        with fleet.telling():
            reached_end = soak.go(arguments.faults, start + 60 * arguments.minutes)
        memory.end.set()
        watcher.join(2 * LOOK_SECONDS)
        if not reached_end:
            print(fleet.children.tails(60))
            raise SystemExit(f"round {len(soak.run.rows)} of {arguments.rounds} in time:\n{soak.run.said[-3000:]}")
        minutes = (time.monotonic() - start) / 60
        fleet.wait_for_devices(fleet.names, 120)
        ledger = check_agreement(fleet, soak.run, fleet.names)
        answers = [len(clients) for clients in contributors(ledger)]
        refused: Counter[str] = Counter()
        for row in soak.run.rows:
            refused.update(row["refused"])
        found = {
            "rounds": len(answers), "minutes": minutes, "seed": arguments.seed, "resumed": soak.resumed,
            "faults": [{"round": at, "fault": kind} for at, kind in soak.done],
            "answers_of_three": {str(n): answers.count(n) for n in range(4)},
            "refused": dict(refused), "agreed": True, "ledger_bytes": (soak.run.output / "ledger.zo").stat().st_size,
            "memory": memory.growth(least_seconds=60 * min(5.0, minutes / 4)),
        }  # fmt: skip
    print(f"wrote {store('soak', found)}")
    print(text())


def text() -> str:
    """Return the paragraph of `docs/results/deployment.md`."""
    found = json.loads((RESULTS / "soak.json").read_text())
    kinds = Counter(entry["fault"] for entry in found["faults"])
    said = ", ".join(f"{count} × {kind}" for kind, count in sorted(kinds.items()))
    full, of = found["answers_of_three"]["3"], found["rounds"]
    lines = [
        f"{of} rounds with {len(found['faults'])} faults ({said}; seed {found['seed']}) took {found['minutes']:.0f} "
        f"minutes; the run was resumed {found['resumed']} times. All three devices counted in {full} rounds, nobody in "
        f"{found['answers_of_three']['0']}. At the end ledger, replay, server and all devices held one checksum.",
        "",
        "| process, its longest life | minutes | MB early | MB late | late ÷ early |",
        "|---|---|---|---|---|",
    ]
    for name, m in found["memory"].items():
        lines.append(f"| {name} | {m['minutes']:.0f} | {m['early_mb']:.0f} | {m['late_mb']:.0f} | {m['ratio']:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
