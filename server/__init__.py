"""The server of a federation."""

import logging
from typing import TYPE_CHECKING

from zo_common.lazy import lazy_names

if TYPE_CHECKING:
    from server.rounds.events import Events
    from server.rounds.federation import Federation
    from server.tracking.tracker import RunFacts, Tracker
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "Events": "server.rounds.events",
            "Federation": "server.rounds.federation",
            "RunFacts": "server.tracking.tracker",
            "Tracker": "server.tracking.tracker",
        },
    )

logging.getLogger(__name__).addHandler(logging.NullHandler())

__all__ = [
    "Events",
    "Federation",
    "RunFacts",
    "Tracker",
]
