"""A grid in this process: the server's rounds and the devices' work, one after another, on one copy of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from client.app import make_client_app
from client.device.engine import Engine
from client.device.warm import warm_engine
from server.run.model import GlobalModel
from zo_common.config.run import RunConfig
from zo_common.errors import ChecksumMismatch
from zo_common.ledger.record import Record, all_updates
from zo_common.ledger.replay import apply_all


class SharedModel(GlobalModel):
    """The devices' engine as the server's model: an update that the server applies is also applied on the devices.

    Nothing is loaded twice. Attributes are looked up in the engine at each access, since an engine that rebuilt its
    weights holds other tensors.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self._records: list[Record] = []
        self._engine().rewind(0)
        self.base_checksum = self._engine().base_checksum

    def _engine(self) -> Engine:
        # no property: an AttributeError in it would go to __getattr__, and be lost
        return warm_engine(self.config)

    def __getattr__(self, name: str) -> Any:
        """Return the engine's model, processor, speech, fingerprint, state …"""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._engine(), name)

    def recorded(self, records: Sequence[Record]) -> None:
        """As `GlobalModel.recorded`."""
        self._records += records
        self._engine().applied = list(self._records)

    def hold_in(self, precision: str) -> None:
        """As `GlobalModel.hold_in`."""
        self._engine().hold_in(precision)

    def restore(self) -> None:
        """Bring an engine that was reset to its base, e.g. after an overflow, to the ledger's last state.

        Raises:
            ChecksumMismatch: the engine does not reach that state.
        """
        engine = self._engine()
        missing = self._records[engine.have_round :]
        if not missing:
            return
        apply_all(engine.state, all_updates(missing))
        engine.applied = list(self._records)
        found, expected = engine.state.checksum(), self._records[-1].checksum
        if found != expected:
            raise ChecksumMismatch(
                f"replaying the ledger leads to checksum {found:016x}, expected {expected:016x}: the memory of this "
                "machine is damaged, resume the run"
            )


class OneProcessGrid(Grid):
    """A grid that calls the devices' ClientApp directly; an answer is available as soon as its message is sent.

    Args:
        app: the devices' ClientApp.
        after: called after each message.
        node_configs: of each device.
    """

    def __init__(self, app: ClientApp, after: Callable[[], None], node_configs: Sequence[dict[str, Any]]) -> None:
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1  # messages carry these ids
        self._app, self._after = app, after
        self._contexts = {
            node: Context(1, node, config, RecordDict(), {}) for node, config in enumerate(node_configs, start=1)
        }
        self._run: Any = None
        self._ids = count(1)
        self._answers: dict[str, Message] = {}

    def set_run(self, run: Any) -> None:
        """Store the run's description, which is not used here."""
        self._run = run

    @property
    def run(self) -> Any:
        """The run that `set_run` stored; None if it was not called, as there is no SuperLink."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a new message to a device."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all nodes."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Let each message's device answer it."""
        names = []
        for message in messages:
            name = str(next(self._ids))
            message.metadata.__dict__["_message_id"] = name  # as a SuperLink gives it
            self._answers[name] = self._app(message, self._contexts[message.metadata.dst_node_id])
            self._after()
            names.append(name)
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the answers."""
        return [self._answers.pop(name) for name in list(message_ids) if name in self._answers]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and return their answers."""
        return self.pull_messages(self.push_messages(messages))


class OneProcess:
    """Grid and model of a run in one process.

    Args:
        devices: how many; each of several has its partition of the recordings, as in a simulation.

    Attributes:
        grid: grid with these devices, whose client ids count from 0; one alone has all of the run's recordings.
    """

    def __init__(self, config: RunConfig, devices: int = 1) -> None:
        alone: list[dict[str, Any]] = [{"client-id": 0, "simulated": True}]
        several: list[dict[str, Any]] = [{"partition-id": n, "num-partitions": devices} for n in range(devices)]
        self.grid = OneProcessGrid(make_client_app(config), self._restore, several if devices > 1 else alone)
        self._model: SharedModel | None = None

    def model_of(self, config: RunConfig) -> SharedModel:
        """Return the devices' model as the server's."""
        self._model = SharedModel(config)
        return self._model

    def _restore(self) -> None:
        if self._model is not None:
            self._model.restore()
