"""Federations of virtual devices on one machine."""

import logging
from typing import TYPE_CHECKING

from zo_common.lazy import lazy_names

if TYPE_CHECKING:
    from simulations.scenario import Scenario
    from simulations.simulation import run_simulation
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "Scenario": "simulations.scenario",
            "run_simulation": "simulations.simulation",
        },
    )

logging.getLogger(__name__).addHandler(logging.NullHandler())

__all__ = [
    "Scenario",
    "run_simulation",
]
