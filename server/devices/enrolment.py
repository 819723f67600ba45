"""Enrolment of devices by the operator: the node that may speak for each."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from zo_common.errors import ZOError

logger = logging.getLogger(__name__)
Register = Callable[[], Mapping[int, int]]


@dataclass(frozen=True)
class Enrolment:
    """Knowledge of the operator about the devices, whatever they say of themselves.

    Attributes:
        own_devices: whether all devices are the operator's, as in a simulation: faulty recordings then stop the start.
        register: returns client id → Flower's node id, which is bound to the device's key; read before every use, as
            devices may be enrolled during a run. None: there is no register, and a free client id is whose node claims
            it first.
    """

    own_devices: bool = False
    register: Register | None = None

    def nodes(self, known: Mapping[int, int] | None) -> Mapping[int, int] | None:
        """Return the register as it is now; `known`, an earlier answer, where it cannot be read.

        Raises:
            ZOError: it cannot be read, and there is no earlier answer.
        """
        if self.register is None:
            return None
        try:
            return self.register()
        except ZOError as error:
            if known is None:
                raise
            logger.warning(f"{error}; until then the devices enrolled before count")
            return known
