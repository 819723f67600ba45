"""Training on one machine, in one process: a federation's rounds without Flower's processes."""

import logging
from typing import TYPE_CHECKING

from zo_common.lazy import lazy_names

if TYPE_CHECKING:
    from server.rounds.result import RunResult
    from train.module import train_module
    from train.run import train
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "RunResult": "server.rounds.result",
            "train": "train.run",
            "train_module": "train.module",
        },
    )

logging.getLogger(__name__).addHandler(logging.NullHandler())

__all__ = [
    "RunResult",
    "train",
    "train_module",
]
