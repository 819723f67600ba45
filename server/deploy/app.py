"""ServerApp of a deployment: errors and bad results become the run's status (an exit would look like a timeout)."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.app import make_server_app, output_of
from server.deploy.deployment import SETTINGS, Deployment
from server.devices.enrolment import Enrolment
from server.rounds.verdict import raise_if_worse
from zo_common.console import shown
from zo_common.errors import ZOError

logger = logging.getLogger(__name__)
app = ServerApp()


class RunFailed(Exception):
    """Error that ends a run; Flower shows its message as the run's details. Not a ZOError: it is logged already."""


def enrolment_of(output: Path) -> Enrolment:
    """Return what the deployment knows of its devices: which node each client id was enrolled with.

    Args:
        output: a run's folder, `runs/NAME` of the deployment.
    """
    root = output.absolute().parent.parent
    if not (root / SETTINGS).is_file():
        return Enrolment()

    def register() -> dict[int, int]:
        devices = Deployment.open(root).devices().values()
        return {device.client_id: int(device.node_id) for device in devices if device.node_id.isdecimal()}

    return Enrolment(register=register)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation."""
    with shown(logging.StreamHandler(sys.stdout)):
        try:
            make_server_app(enrolment=enrolment_of(output_of(None, context)))(grid, context)
            raise_if_worse(output_of(None, context))
        except ZOError as error:
            logger.error(f"error: {error}")
            sys.tracebacklimit = 0  # Flower logs this error; a traceback into our code does not help the operator
            raise RunFailed(str(error)) from None
