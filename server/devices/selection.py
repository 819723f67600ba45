"""Client selection: devices that are online and neither excluded nor backing off, all or a seeded sample."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable

from server.devices.device_status import DeviceStatuses
from server.devices.roster import Member, Roster
from zo_common.config.run import RunConfig
from zo_common.directions.seeds import fold_in

logger = logging.getLogger(__name__)
_SAMPLING_STREAM = 1 << 42
Able = Callable[[int, list[Member]], list[Member]]


class Selection:
    """Chooses among a run's devices."""

    def __init__(self, config: RunConfig, roster: Roster, statuses: DeviceStatuses) -> None:
        self._config, self._roster, self._statuses = config, roster, statuses

    def _here(self) -> list[Member]:
        roster = self._roster
        online = [m for m in roster.members.values() if m.node_id in roster.online]
        return [m for m in online if not self._statuses.of(m.client_id).excluded]

    def wait(self, server_round: int) -> None:
        """Wait until `min-clients` devices are online, e.g. after a network failure, for at most `round-timeout`."""
        deadline = time.monotonic() + self._config.round_timeout
        warned = False
        while True:
            self._roster.refresh_online()
            here = self._here()
            newcomers = len(self._roster.online - self._roster.members.keys())
            if len(here) + newcomers >= self._config.min_clients or time.monotonic() > deadline:
                return
            if not warned:
                logger.warning(
                    f"round {server_round}: {len(here)} devices are online, min-clients is {self._config.min_clients}: "
                    "waiting for more"
                )
                warned = True
            time.sleep(0.5)

    def choose(self, server_round: int, able: Able | None = None) -> list[Member]:
        """Return this round's devices: those online, in good standing and `able`, or a seeded sample of them.

        Args:
            able: returns those of the members that the round's number may still be asked of.
        """
        config = self._config
        members = sorted(self._here(), key=lambda m: m.client_id)
        if server_round < config.late_round and config.late_joiners:
            members = members[: max(1, len(members) - config.late_joiners)]
        willing = [m for m in members if self._statuses.may_be_asked(m.client_id, server_round)]
        if len(willing) >= max(config.min_clients, config.min_replies):
            members = willing  # else too few devices are left to let some back off
        if able is not None:
            members = able(server_round, members)
        wanted = math.ceil(config.clients_per_round * (1 + config.over_selection))
        if wanted and wanted < len(members):
            draw = random.Random(fold_in(config.run_seed, _SAMPLING_STREAM, server_round))
            members = sorted(draw.sample(members, wanted), key=lambda m: m.client_id)
        return members
