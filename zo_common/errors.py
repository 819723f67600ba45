"""Errors a user can cause: each message is one sentence with what was got, what was expected and the remedy."""

from __future__ import annotations

from collections.abc import Sequence


class ZOError(Exception):
    """Base of all our errors; command lines print the message alone, without a traceback."""


class ConfigError(ZOError):
    """A setting has a wrong name or value."""


class RunStopped(ZOError):
    """A run cannot go on; its ledger holds all rounds so far and can be resumed."""


class TooFewReplies(ZOError):
    """A round has too few valid replies for its aggregation to hold what it promises; it stays empty."""


class EpsilonTooSmall(ConfigError):
    """The perturbation rounds to zero grid units in some trained tensor."""


class LossCheckFailed(ConfigError):
    """The loss, computed as the settings say, is not the model's; says by how much, and what fits."""


class PatternError(ConfigError):
    """A choice of trained tensors matches nothing."""


class UnsupportedModel(ZOError):
    """The model's class, dtype or layout cannot be trained here."""


class ModelNotFound(ZOError):
    """Neither a local directory nor a reachable hub id."""


class TensorIdCollision(ZOError):
    """Two trained tensors share one 32-bit tensor id and would share their directions."""


class LatticeOverflow(ZOError):
    """A weight left the range in which its grid is exact in float32."""


class NonFiniteLoss(ZOError):
    """A loss was NaN or infinite, so no projected gradient exists."""


class CodecError(ZOError):
    """Bytes are not a well-formed message."""


class LedgerError(ZOError):
    """A ledger cannot be used; nothing was written."""


class LedgerAltered(LedgerError):
    """A checksum or the hash chain of a ledger does not hold."""


class LedgerTruncated(LedgerError):
    """A ledger ends before its header is complete."""


class ProtocolMismatch(LedgerError):
    """A ledger or message speaks another protocol version."""


class WrongBaseModel(LedgerError):
    """The base model's fingerprint is not the ledger's."""


class ChecksumMismatch(LedgerError):
    """Replay does not reach the recorded state checksum."""


class SecureAggregationError(ZOError):
    """A step of secure aggregation was refused; no device's scalars were shown."""


class DataError(ZOError):
    """One or more recordings cannot be used; `problems` lists all of them."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        head = f"{count} problem{'s' if count != 1 else ''} in the data:"
        super().__init__("\n  ".join([head, *self.problems]))
