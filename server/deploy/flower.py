"""Calls of Flower's command line with the deployment's settings."""

from __future__ import annotations

import json
import re
import subprocess
from typing import Any

from server.deploy.deployment import CONNECTION, Deployment
from zo_common.errors import NetworkError

PATIENCE_SECONDS = 60.0


RUN_NOT_FOUND, RUN_ENDED, KEY_IN_USE, NODE_NOT_FOUND = 16, 18, 23, 24  # SuperLink's codes


class FlowerError(NetworkError):
    """SuperLink cannot be reached or refused a request; `code` is SuperLink's error code, or 0."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


def flwr_command(deployment: Deployment, *arguments: str) -> list[str]:
    """Return a command line of the installation's own `flwr`."""
    return [str(deployment.bin / "flwr"), *arguments]


def flwr_json(deployment: Deployment, *arguments: str, timeout: float = PATIENCE_SECONDS) -> dict[str, Any]:
    """Run a `flwr` command that supports `--format json` and return its answer.

    Raises:
        FlowerError: it failed, did not end in `timeout` seconds, or answered something else.
    """
    what = "flwr " + " ".join(arguments[:2])
    try:
        done = subprocess.run(
            flwr_command(deployment, *arguments, "--format", "json"),
            env=deployment.environment() | {"NO_COLOR": "1", "COLUMNS": "1000"},
            cwd=deployment.root, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=timeout,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise FlowerError(f"{what} gave no answer in {timeout:.0f} s: look at log/superlink.log") from None
    except OSError as error:
        raise FlowerError(f"{deployment.bin / 'flwr'}: {error.strerror}: run zo-asr server units") from None
    answer = _last_json(done.stdout)
    if done.returncode != 0 or answer is None or not answer.get("success"):
        code = re.search(r"\[code: (\d{1,9})\]", str((answer or {}).get("error-message")))
        raise FlowerError(f"{what}: {_reason(answer, done.stdout + done.stderr)}", int(code[1]) if code else 0)
    return answer


def run_status(deployment: Deployment, run_id: str, timeout: float = PATIENCE_SECONDS) -> tuple[str, str]:
    """Return a run's status, such as `running` or `finished:completed`, and its details."""
    runs = flwr_json(deployment, "ls", CONNECTION, "--run-id", run_id, timeout=timeout).get("runs")
    if not runs:
        raise FlowerError(f"flwr ls: SuperLink does not know run {run_id}: start or resume it", RUN_NOT_FOUND)
    details = str(runs[0].get("status-details") or "")
    return str(runs[0]["status"]), "" if details == "N/A" else details


def _last_json(text: str) -> dict[str, Any] | None:
    """Parse the object at the end of the output: Flower may print notes before it."""
    start = text.find("{")
    while start >= 0:
        try:
            found, _ = json.JSONDecoder().raw_decode(text, start)
        except ValueError:
            start = text.find("{", start + 1)
            continue
        return found if isinstance(found, dict) else None
    return None


def _reason(answer: dict[str, Any] | None, output: str) -> str:
    message = str(answer.get("error-message") or "") if answer else ""
    lines = [line.strip() for line in (message or output).splitlines() if line.strip()]
    reason = re.sub(r"\s+", " ", " ".join(lines))[-400:] or "it failed without a word"
    if re.search(r"connect|unavailable|refused", reason, re.IGNORECASE):
        return f"SuperLink cannot be reached: start it with start.sh or systemctl ({reason})"
    return reason
