"""The server of a federation."""

import logging
from typing import TYPE_CHECKING

from zo_common.lazy import lazy_names

if TYPE_CHECKING:
    from server.rounds.events import Events
    from server.rounds.federation import Federation
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "Events": "server.rounds.events",
            "Federation": "server.rounds.federation",
        },
    )

logging.getLogger(__name__).addHandler(logging.NullHandler())

__all__ = [
    "Events",
    "Federation",
]
