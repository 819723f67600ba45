"""Errors raised on purpose: each message is one sentence with what was got, what was expected and the remedy.

The base classes say who can fix the error: the operator, the device, the server, or the network's other side.
"""

from __future__ import annotations

from collections.abc import Sequence


class ZOError(Exception):
    """Base of all our errors; command lines print the message alone, without a traceback."""


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


class EpsilonTooSmall(ConfigError):
    """The perturbation rounds to zero grid units in some trained tensor."""


class LossCheckFailed(ConfigError):
    """The loss under the chosen settings differs from the model's own; the message says by how much, and what fits."""


class PatternError(ConfigError):
    """A choice of trained tensors matches nothing."""


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
    """One or more recordings cannot be used; `problems` lists all of them."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        head = f"{count} problem{'s' if count != 1 else ''} in the data:"
        super().__init__("\n  ".join([head, *self.problems]))


class LedgerError(OperatorError):
    """A ledger's file cannot be read, written or joined to another; nothing was written."""


class LedgerAltered(LedgerError):
    """A checksum or the hash chain of a ledger does not hold."""


class LedgerTruncated(LedgerError):
    """A ledger ends before its header is complete."""


class LatticeOverflow(DeviceError):
    """A weight left the range in which its grid is exact in float32."""


class NonFiniteLoss(DeviceError):
    """A loss was NaN or infinite, so no projected gradient exists."""


class ChecksumMismatch(DeviceError):
    """Weights are not those of the recorded state checksum."""


class RunStopped(ServerError):
    """A run cannot go on; its ledger holds all rounds so far and can be resumed."""


class TooFewReplies(ServerError):
    """A round has too few valid replies for the guarantee of its aggregation rule; it stays empty."""


class CodecError(NetworkError):
    """Bytes are not a well-formed message."""


class ProtocolMismatch(NetworkError):
    """A file or message speaks another protocol version."""


class SecureAggregationError(NetworkError):
    """A step of secure aggregation was refused; no device's scalars were shown."""
