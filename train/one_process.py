"""A grid with one device, in this process: the server's rounds and the device's work on one copy of the model."""

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

NODE = 1


class SharedModel(GlobalModel):
    """The device's engine as the server's model: an update that the server applies is also applied on the device.

    Nothing is loaded twice. Attributes are looked up in the engine at each access, since an engine that rebuilt its
    weights holds other tensors.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self._records: list[Record] = []
        self._engine.rewind(0)
        self.base_checksum = self._engine.base_checksum

    @property
    def _engine(self) -> Engine:
        return warm_engine(self.config)

    def __getattr__(self, name: str) -> Any:
        """The engine's model, processor, speech, fingerprint, state …"""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._engine, name)

    def recorded(self, records: Sequence[Record]) -> None:
        """As `GlobalModel.recorded`."""
        self._records += records
        self._engine.applied = list(self._records)

    def hold_in(self, precision: str) -> None:
        """As `GlobalModel.hold_in`."""
        self._engine.hold_in(precision)

    def restore(self) -> None:
        """Bring an engine that was reset to its base, e.g. after an overflow, to the ledger's last state.

        Raises:
            ChecksumMismatch: the engine does not reach that state.
        """
        engine = self._engine
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
    """A grid that calls the device's ClientApp directly; an answer is available as soon as its message is sent.

    Args:
        app: the device's ClientApp.
        after: called after each message.
    """

    def __init__(self, app: ClientApp, after: Callable[[], None]) -> None:
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1  # messages carry these ids
        self._app, self._after = app, after
        self._context = Context(1, NODE, {"client-id": 0, "simulated": True}, RecordDict(), {})
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
        """Return a new message to the device."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the id of the only node."""
        return [NODE]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Let the device answer each message."""
        names = []
        for message in messages:
            name = str(next(self._ids))
            message.metadata.__dict__["_message_id"] = name  # as a SuperLink gives it
            self._answers[name] = self._app(message, self._context)
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

    Attributes:
        grid: grid with one device, client 0, which has all of the run's recordings.
    """

    def __init__(self, config: RunConfig) -> None:
        self.grid = OneProcessGrid(make_client_app(config), self._restore)
        self._model: SharedModel | None = None

    def model_of(self, config: RunConfig) -> SharedModel:
        """The device's model as the server's."""
        self._model = SharedModel(config)
        return self._model

    def _restore(self) -> None:
        if self._model is not None:
            self._model.restore()
