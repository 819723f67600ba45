"""A server and its devices on the fake grid in one process that a test can kill.

Imports once; for each line on stdin, the name of a JSON file of settings, it forks a child that runs the federation and
writes the checksums reached to `<output>/reached.json`. It answers with the child's process id, then its exit status.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from fake_grid import FakeGrid, Memory

from server.rounds.federation import Federation
from zo_common.config.run import RunConfig
from zo_common.wire.plan import Status


def run(settings: Path) -> None:
    """One federation of three devices, to its end."""
    config = RunConfig.from_mapping(json.loads(settings.read_text()))
    grid = FakeGrid(config, [Memory() for _ in range(3)])
    federation = Federation(config, grid)
    federation.run()
    # a device hears of the last round with the plan of a next one
    reached = []
    for node, member in federation.members.items():
        engine = grid.devices[node].engine
        plan = federation._plan(config.num_server_rounds + 1, member, config.learning_rate)
        assert engine.sync(plan) is Status.OK
        reached.append(engine.state.checksum())
    held = federation.global_model
    assert held is not None
    summary = {"server": held.state.checksum(), "devices": reached}
    (Path(config.output) / "reached.json").write_text(json.dumps(summary))


def main() -> None:
    """Fork a child a line; nothing here starts a thread, so that forking is safe."""
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                run(Path(line.strip()))
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
