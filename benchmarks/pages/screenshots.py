"""Take the pictures of the live page in `docs/pictures`, with the Chromium of the system.

Run as `python -m benchmarks.pages.screenshots`. The runs are made up (`benchmarks.harness.run_files`): the pictures
show the page, not results.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness.browser import browser
from benchmarks.harness.run_files import RunFiles
from benchmarks.harness.served_page import served
from server.run.lock import RunLock

PICTURES = Path(__file__).parent.parent.parent / "docs" / "pictures"
NAMES = ("anna", "ben", "cleo", "dora", "emil", "fay", "gus", "hana")
_LARGEST = 150_000  # bytes of a picture


def in_progress(folder: Path, rounds: int = 64) -> RunFiles:
    """Make up a run with privacy that has reached a round of 120."""
    run = RunFiles(folder, NAMES, num_server_rounds=120, privacy="example", target_epsilon=8.0, target_delta=1e-6)
    run.evaluation(0, 0.312, 3.42)
    for number in range(1, rounds + 1):
        late = {"late": 1} if number % 9 == 0 else {"no-answer": 1} if number % 14 == 0 else None
        run.round(late, epsilon_spent=8.0 * (number / 120) ** 0.6)
        if number % 20 == 0:
            run.evaluation(number, 0.312 - 0.0012 * number, 3.42 - 0.008 * number)
        run.say(f"2026-01-01T10:{number // 6:02d}:{number % 6 * 10:02d}Z INFO [ROUND {number}] 8/8 devices")
    gus, hana = run.device(6), run.device(7)
    gus.failures, gus.until_round, gus.last_seen_round = 4, rounds + 3, rounds - 11
    gus.refused.update({"no-answer": 6})
    gus.word = "client 6 did not answer in time"
    hana.excluded, hana.last_seen_round = True, rounds - 20
    hana.refused.update({"wrong-checksum": 2})
    hana.word = "its weights were off again after a rebuild: check its base model, memory and release"
    run.statuses.save(folder, rounds)
    return run


def take(page: Any, name: str, width: int, height: int, *, whole: bool = False) -> None:
    """Write a picture to `docs/pictures`, in few colours; `whole`: of all the page, not of what fits."""
    from PIL import Image

    page.set_viewport_size({"width": width, "height": height})
    page.wait_for_timeout(500)
    path = PICTURES / f"{name}.png"
    page.screenshot(path=path, full_page=whole)
    Image.open(path).convert("RGB").quantize(128, Image.Quantize.MAXCOVERAGE, kmeans=3).save(path, optimize=True)
    if path.stat().st_size > _LARGEST:
        raise SystemExit(f"{path} has {path.stat().st_size} bytes, expected at most {_LARGEST}: make it smaller")
    print(json.dumps({"picture": str(path), "bytes": path.stat().st_size}))


def main() -> None:
    """Take the three pictures: a run in progress, one that was stopped on a narrow dark screen, a finished one."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as made, browser() as chromium:
        run = in_progress(Path(made) / "west-midlands")
        lock = RunLock(run.folder)
        with served(run.folder) as address:
            page = chromium.new_page()
            page.goto(address)
            page.wait_for_selector("#rounds tbody tr")
            take(page, "dashboard-running", 1000, 800, whole=True)
        lock.release()
        with served(run.folder, "zo-asr server resume /srv/zo-asr west-midlands") as address:
            page = chromium.new_page(color_scheme="dark")
            page.goto(address)
            page.wait_for_selector("#resume:not([hidden])")
            take(page, "dashboard-stopped", 360, 1400)
        while len(run.log.rows) < 120:
            run.round(epsilon_spent=8.0 * (len(run.log.rows) / 120) ** 0.6)
        run.evaluation(120, 0.221, 2.71)
        run.end()
        with served(run.folder) as address:
            page = chromium.new_page(color_scheme="dark")
            page.goto(address)
            page.wait_for_selector(".badge.finished")
            page.check("input[value=bytes]")
            take(page, "dashboard-finished", 900, 760)


if __name__ == "__main__":
    main()
