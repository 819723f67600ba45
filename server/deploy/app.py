"""ServerApp of a deployment: errors and bad results become the run's status (an exit would look like a timeout)."""

from __future__ import annotations

import logging
import sys

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.app import make_server_app, output_of
from server.rounds.verdict import raise_if_worse
from zo_common.console import shown
from zo_common.errors import ZOError

logger = logging.getLogger(__name__)
app = ServerApp()


class RunFailed(Exception):
    """Error that ends a run; Flower shows its message as the run's details. Not a ZOError: it is logged already."""


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation."""
    with shown(logging.StreamHandler(sys.stdout)):
        try:
            make_server_app()(grid, context)
            raise_if_worse(output_of(None, context))
        except ZOError as error:
            logger.error(f"error: {error}")
            sys.tracebacklimit = 0  # Flower logs this error; a traceback into our code does not help the operator
            raise RunFailed(str(error)) from None
