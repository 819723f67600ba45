"""The live page of a run's folder, served within a block."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from server.watch.dashboard import dashboard
from server.watch.live import LiveRun
from server.watch.run_folder import RunFolder
from server.watch.serve import Listening, server_of


@contextmanager
def served(folder: Path, resume: str = "", every: float = 0.2) -> Iterator[str]:
    """Serve a run's page on a free port of the loopback interface within a block; yield its address."""
    live = LiveRun(RunFolder(folder), resume, every)
    server = server_of(dashboard(live), Listening.of("127.0.0.1:0"), live.close)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError("the page's server ended before it listened")
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(10)
