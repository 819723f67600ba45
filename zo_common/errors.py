"""Errors raised on purpose: each message is one sentence with what was got, what was expected and the remedy.

The base classes say who can fix the error: the operator, the device, the server, or the network's other side.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar


class ZOError(Exception):
    """Base of all our errors; command lines print the message alone, without a traceback.

    Attributes:
        public: whether the message never holds a path, a transcript or another text of the machine where it is raised.
    """

    public: ClassVar[bool] = False

    @property
    def public_text(self) -> str:
        """Text for a server: the message where that is public, else the kind of error."""
        return str(self) if self.public else kind_of_error(self)


class OperatorError(ZOError):
    """An input of a command cannot be used: a setting, a model, recordings, a file."""


class DeviceError(ZOError):
    """The machine that trains or replays has wrong numbers or damaged memory, or its owner stopped it."""


class ServerError(ZOError):
    """The run cannot continue, or a round of it has no result."""


class NetworkError(ZOError):
    """Another program sent data that cannot be used, or did not answer."""


class ConfigError(OperatorError):
    """A setting has a wrong name or value."""


class Refusal(ConfigError):
    """Request that a device's owner does not allow; the message is for the server's operator, too."""

    public = True


class BudgetSpent(ConfigError):
    """End of an owner's allowance; its amount is between the device and all the servers that asked."""

    @property
    def public_text(self) -> str:
        """Message without the amount."""
        return "this device's owner allows no such answer any more: ask for more noise, or leave this device out"


class EpsilonTooSmall(ConfigError):
    """The perturbation rounds to zero grid units in some trained tensor."""

    public = True


class LossCheckFailed(ConfigError):
    """The loss under the chosen settings differs from the model's own; the message says by how much, and what fits."""

    public = True


class UnknownSetting(ConfigError):
    """A setting's name is not known here; the message has names of settings alone."""

    public = True


class PatternError(ConfigError):
    """A choice of trained tensors matches nothing; the message has the run's pattern and names of tensors."""

    public = True


class UnsupportedModel(OperatorError):
    """The model's class, dtype or layout cannot be trained here."""


class ModelNotFound(OperatorError):
    """Neither a local directory nor a reachable hub id."""


class ExportFailed(OperatorError):
    """The adapted model could not be saved; its ledger is intact."""


class TensorIdCollision(OperatorError):
    """Two trained tensors share one 32-bit tensor id and would share their directions."""


class WrongBaseModel(OperatorError):
    """The base model's fingerprint is not the ledger's."""


class DataError(OperatorError):
    """One or more recordings cannot be used; `problems` lists all of them, with names of files and pieces of text."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        if len(self.problems) == 1:
            super().__init__(self.problems[0])
        else:
            super().__init__("\n  ".join([f"{len(self.problems)} problems in the data:", *self.problems]))

    @property
    def public_text(self) -> str:
        """Number of problems, without their texts."""
        count = len(self.problems)
        return f"{count} problem{'s' if count != 1 else ''} in the data: this device's own log lists them"


class LedgerError(OperatorError):
    """A ledger's file cannot be read, written or joined to another; nothing was written."""


class LedgerAltered(LedgerError):
    """A checksum or the hash chain of a ledger does not hold."""


class LedgerTruncated(LedgerError):
    """A ledger ends before its header is complete."""


class LatticeOverflow(DeviceError):
    """A weight left the range in which its grid is exact in float32."""

    public = True


class NonFiniteLoss(DeviceError):
    """A loss was NaN or infinite, so no projected gradient exists."""

    public = True


class ChecksumMismatch(DeviceError):
    """Weights are not those of the recorded state checksum."""


class RunStopped(ServerError):
    """A run cannot go on; its ledger holds all rounds so far and can be resumed."""


class TooFewReplies(ServerError):
    """A round has too few valid replies for the guarantee of its aggregation rule; it stays empty."""


class CodecError(NetworkError):
    """Bytes are not a well-formed message."""

    public = True


class ProtocolMismatch(NetworkError):
    """A file or message speaks another protocol version."""

    public = True


class SecureAggregationError(NetworkError):
    """A step of secure aggregation was refused; no device's scalars were shown."""

    public = True


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type's name where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def kind_of_error(error: BaseException) -> str:
    """Return the text for a server of any error: its kind, as `model-not-found`, and where to read the rest."""
    kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", type(error).__name__).lower()
    return f"{kind}: this device's own log says why"
