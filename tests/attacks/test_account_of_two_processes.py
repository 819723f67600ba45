"""Attack: two servers ask one device at once, so that two processes charge one account and each forgets the other's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from client.device.privacy_account import PrivacyAccount
from zo_common.privacy.accountant import Release, epsilon_spent

PROCESSES, CHARGES = 3, 25
LIMIT = 1e4
CHARGE = """
import sys
from pathlib import Path
from client.device.privacy_account import PrivacyAccount
from zo_common.config.run import RunConfig
from zo_common.privacy.mechanism import Mechanism
from zo_common.wire.plan import Plan

plan = Plan(1, 0, 3, 0, 0, 1, 2, 1e-3, RunConfig().estimator_config, (), Mechanism("example", 5.0, 2.0, 8))
account = PrivacyAccount(Path(sys.argv[1]), float(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(sys.argv[3])):
    account.charge(plan, 10)
"""


def test_two_processes_on_one_account_lose_no_charge(tmp_path: Path) -> None:
    path = tmp_path / "privacy.account"
    command = [sys.executable, "-c", CHARGE, str(path), str(LIMIT), str(CHARGES)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(PROCESSES)
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:  # all at once: they have waited for their line
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=120)
        assert process.returncode == 0
    kept = PrivacyAccount(path, LIMIT).epsilon
    assert kept == epsilon_spent({Release(2.0, 2, 10): PROCESSES * CHARGES}, 1e-6)
