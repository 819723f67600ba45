"""Cost of the live page: bytes of a first state and of a round, and the time to draw a round in a real browser.

    python -m benchmarks.cost.page

A large run and then a small one are drawn by the same Chromium, a round after another.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness.browser import browser
from benchmarks.harness.rows import RESULTS, amount, spread, store
from benchmarks.harness.run_files import RunFiles
from benchmarks.harness.served_page import served
from server.run.log_file import RUN_LOG
from server.watch.log_tail import LogTail
from server.watch.page_state import change, encoded, state_of
from server.watch.run_folder import RunFolder

NAME = "page"
SMALL = (10, 20)  # devices, rounds


def made_up(folder: Path, devices: int, rounds: int) -> RunFiles:
    """Write the folder of a run with so many devices, after so many rounds."""
    run = RunFiles(folder, [f"device-{number}" for number in range(devices)], num_server_rounds=rounds + 100)
    run.rounds(rounds)
    return run


def sent(run: RunFiles) -> tuple[int, int]:
    """Return bytes of the first state that a page gets, and of the change that a round makes."""
    tail = LogTail(run.folder / RUN_LOG)
    before = state_of(RunFolder(run.folder).read(), tail.read())
    run.round()
    after = state_of(RunFolder(run.folder).read(), tail.read())
    return len(encoded(change(None, before)).encode()), len(encoded(change(before, after)).encode())


def drawn(page: Any, address: str, run: RunFiles, repeats: int) -> list[float]:
    """Return milliseconds from each of some rounds' change to the drawn page."""
    page.goto(address)
    page.wait_for_selector(f"html[data-round='{len(run.log.rows)}']")
    found = []
    for _ in range(repeats):
        run.round()
        page.wait_for_selector(f"html[data-round='{len(run.log.rows)}']")
        found.append(float(page.get_attribute("html", "data-draw-ms")))
    return found


def text() -> str:
    """Return the sentence of the docs."""
    found = json.loads((RESULTS / f"{NAME}.json").read_text())
    times = found["milliseconds"]
    large, small = times["large"], times["small"]
    return (
        f"With {found['devices']:,} devices and {found['rounds']:,} rounds a page gets "
        f"{amount(found['first_bytes'], 'B')} at first and {amount(found['round_bytes'], 'B')} a round. Chromium "
        f"draws a round in {large['median']:.0f} ms (at most {large['max']:.0f}), one of {SMALL[0]} devices after "
        f"{SMALL[1]} rounds in {small['median']:.0f} ms."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch, browser() as chromium:
        large = made_up(Path(scratch) / "large", arguments.devices, arguments.rounds)
        first, each = sent(large)
        for name, run in {"large": large, "small": made_up(Path(scratch) / "small", *SMALL)}.items():
            with served(run.folder) as address:
                times[name] = drawn(chromium.new_page(), address, run, arguments.repeats)
    numbers = {
        "devices": arguments.devices,
        "rounds": arguments.rounds,
        "first_bytes": first,
        "round_bytes": each,
        "milliseconds": {name: spread(values) for name, values in times.items()},
    }
    print(json.dumps(numbers))
    print(f"wrote {store(NAME, numbers)}")


if __name__ == "__main__":
    main()
