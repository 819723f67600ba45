"""Federated zeroth-order fine-tuning: the method, shared by server and devices."""

import logging
from typing import TYPE_CHECKING

from zo_common.lazy import lazy_names

if TYPE_CHECKING:
    from zo_common.adapters.adapted import AdaptedModel, load_adapted
    from zo_common.config.run import RunConfig
    from zo_common.errors import ZOError
    from zo_common.estimator.local_steps import run_local_steps
    from zo_common.estimator.settings import EstimatorConfig
    from zo_common.estimator.step import zo_step
    from zo_common.lattice.state import LatticeState
    from zo_common.lattice.update import Update
    from zo_common.ledger.combine import combine
    from zo_common.ledger.file import read_ledger
    from zo_common.ledger.ledger import Ledger
    from zo_common.ledger.replay import replay
    from zo_common.models.load import load_model
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "AdaptedModel": "zo_common.adapters.adapted",
            "EstimatorConfig": "zo_common.estimator.settings",
            "LatticeState": "zo_common.lattice.state",
            "Ledger": "zo_common.ledger.ledger",
            "RunConfig": "zo_common.config.run",
            "Update": "zo_common.lattice.update",
            "ZOError": "zo_common.errors",
            "combine": "zo_common.ledger.combine",
            "load_adapted": "zo_common.adapters.adapted",
            "load_model": "zo_common.models.load",
            "read_ledger": "zo_common.ledger.file",
            "replay": "zo_common.ledger.replay",
            "run_local_steps": "zo_common.estimator.local_steps",
            "zo_step": "zo_common.estimator.step",
        },
    )

logging.getLogger(__name__).addHandler(logging.NullHandler())

__all__ = [
    "AdaptedModel",
    "EstimatorConfig",
    "LatticeState",
    "Ledger",
    "RunConfig",
    "Update",
    "ZOError",
    "combine",
    "load_adapted",
    "load_model",
    "read_ledger",
    "replay",
    "run_local_steps",
    "zo_step",
]
for _loud in (
    "torchao",
    "torch.utils._pytree",
):  # transformers imports torchao, which lists extensions for other machines
    logging.getLogger(_loud).setLevel(logging.ERROR)
