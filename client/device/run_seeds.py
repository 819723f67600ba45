"""Run-seeds that a device has answered to, remembered over restarts and snapshots.

Rounds that a device has applied must follow from the run's seed (`checks.check_history`); a snapshot shows none. So a
seed is taken up where all of a run's rounds can be seen to follow from it, as before the first, and by a device that
knows of no run from this base model yet. Whoever changes the seed in the middle of a run is refused.
"""

from __future__ import annotations

from pathlib import Path

from client.device.checks import follows
from client.device.follower import Follower
from client.device.sealed_json import SealedJson
from zo_common.config.run import RunConfig
from zo_common.errors import Refusal
from zo_common.wire.plan import Plan

SEEDS_NAME = "run.seeds"
_LOST = "nobody knows which run-seeds were answered: put a backup in its place, or remove it if no run is under way"
_MOST = 8  # runs from one base model at a time, the last ones


class RunSeeds:
    """The run-seeds by base model and client id, in a file; its folder exists."""

    def __init__(self, path: Path) -> None:
        self._file = SealedJson(path, b"ZORS", 1, _LOST)

    def check(self, config: RunConfig, plan: Plan, engine: Follower) -> None:
        """Refuse a seed that appears in the middle of a run; remember one that may be taken up.

        Args:
            engine: in step with the plan.

        Raises:
            Refusal: that.
            ConfigError: the file cannot be read or written.
        """
        known, key = self._file.read(), f"{plan.base_id:016x}/{plan.client_id}"
        seeds = known.get(key, [])
        if config.run_seed in seeds:
            return
        seen = engine.start_round == 0 and all(follows(config, record) for record in engine.applied)
        # of whichever client id: callers name it, and each gives other directions
        if not seen and any(other.startswith(f"{plan.base_id:016x}/") for other in known):
            raise Refusal(
                f"this device was asked in round {plan.server_round} with a run-seed that it does not know, or by "
                "another client id, and came there by a snapshot, which does not show what came before: send it its "
                f"rounds, or let its owner remove {SEEDS_NAME} from the worker's state folder, if this is another run"
            )
        known[key] = [*seeds, config.run_seed][-_MOST:]
        self._file.write(known)
