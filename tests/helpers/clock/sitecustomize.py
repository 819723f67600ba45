"""On the path of a device's processes: the clock as all of Flower reads it is off by $ZO_ASR_TEST_CLOCK seconds."""

import datetime
import os
import sys

import flwr.supercore.date

_RIGHT = flwr.supercore.date.now
_OFF = datetime.timedelta(seconds=float(os.environ["ZO_ASR_TEST_CLOCK"]))


def _wrong() -> datetime.datetime:
    return _RIGHT() + _OFF


for _module in list(sys.modules.values()):
    if getattr(_module, "now", None) is _RIGHT:
        _module.now = _wrong  # type: ignore[attr-defined]
