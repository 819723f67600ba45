"""Resident workers as processes of their own, forked from one that has imported everything.

For each line on stdin, a JSON list of command-line arguments and the path of a log, it forks a worker and prints its
process id; `{"wait": pid, "seconds": s}` prints its exit status, negative for a signal, or `null` if it still runs.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from importlib import import_module

from client.worker.cli import main as run_worker

for _module in ("job_queue", "runtime", "journal", "service"):  # imported once, for all workers
    import_module(f"client.worker.{_module}")


def _child(arguments: list[str], log: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = ["zo-asr-worker", *arguments]
    code = 0
    try:
        run_worker()
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else int(done.code is not None)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        code = 70
    sys.stderr.flush()
    os._exit(code)


def _wait(pid: int, seconds: float) -> int | None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    return None


def main() -> None:
    """Nothing here starts a thread, so that forking is safe; when stdin ends all children are killed."""
    children = []
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            print(json.dumps(_wait(asked["wait"], asked["seconds"])), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            _child(asked["arguments"], asked["log"])
        children.append(pid)
        print(pid, flush=True)
    for pid in children:
        try:
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                os.kill(pid, signal.SIGKILL)
        except (ChildProcessError, ProcessLookupError):
            pass


if __name__ == "__main__":
    main()
