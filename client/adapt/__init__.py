"""Adaptation to unlabelled recordings on one machine, without a server."""

from typing import TYPE_CHECKING

from zo_common.lazy import lazy_names

if TYPE_CHECKING:
    from client.adapt.adapter import Adapter, AdaptSettings
    from client.adapt.drift_guard import DriftBounds
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "AdaptSettings": "client.adapt.adapter",
            "Adapter": "client.adapt.adapter",
            "DriftBounds": "client.adapt.drift_guard",
        },
    )

__all__ = [
    "AdaptSettings",
    "Adapter",
    "DriftBounds",
]
