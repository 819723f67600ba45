"""Text of a device's error: all of it for its own log, and for a server without anything of the device."""

from __future__ import annotations

import logging

from client.device_identity import DeviceIdentity
from zo_common.errors import ZOError, kind_of_error

logger = logging.getLogger(__name__)


class DroppedOut(ConnectionError):
    """A device is silent, as the scenario asks."""


def error_text(error: Exception, identity: DeviceIdentity | None = None) -> str:
    """Return the text that goes on the wire; the device's own, where it says more, is logged.

    Names of files, transcripts and settings of a device are its owner's. In a simulation they are the operator's.
    """
    ours = identity is not None and identity.simulated
    if not isinstance(error, ZOError):
        logger.error("an error that nobody foresaw", exc_info=error)
        return f"{type(error).__name__}: {error}" if ours else kind_of_error(error)
    if ours:
        return str(error)
    text = error.public_text
    if text != str(error):
        logger.warning(str(error))
    return text


def named_error(error: Exception) -> str:
    """Return an unforeseen error's class and the beginning of its message, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
