"""The server's model: the replica whose weights follow from the ledger, and the ledger header of a run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from server.run.settings import ledger_settings
from zo_common.config.header import header_of
from zo_common.config.run import RunConfig
from zo_common.errors import WrongBaseModel
from zo_common.lattice.state import LatticeState
from zo_common.ledger.ledger import LedgerHeader, TensorEntry
from zo_common.ledger.record import Record
from zo_common.ledger.snapshot import encode_snapshot
from zo_common.models.frozen.load import load_held
from zo_common.models.load import load_model
from zo_common.replica import Replica

View = tuple[str, int, tuple[TensorEntry, ...]]  # fingerprint, base checksum, trained tensors


class GlobalModel(Replica):
    """The server's replica of the model, in main memory."""

    def _place(self) -> torch.device:
        return torch.device("cpu")

    def recorded(self, records: Sequence[Record]) -> None:
        """Do nothing: called once rounds that the weights include are in the ledger."""

    def snapshot(self) -> bytes:
        """Return the present weights' difference to the base model, which is loaded again for the comparison.

        Raises:
            WrongBaseModel, ModelNotFound: the base model was changed or removed since the run began.
        """
        model = self._base_model()
        header = {t.name: (t.grid_exponent, t.scale_exponent) for t in self.tensors}
        base = LatticeState(model, ",".join(header), self.config.scale, exponents=header)
        if base.checksum() != self.base_checksum:
            raise WrongBaseModel(f"{self.config.model} is not the base model any more that this run began with")
        return encode_snapshot(base, self.state)

    def _base_model(self) -> nn.Module:
        config = self.config
        if self.held_in == "float32":
            return load_model(config.model, language=config.language).model
        return load_held(
            config.model, language=config.language, trained=config.trained_tensors, precision=self.held_in
        ).loaded.model


def open_header(config: RunConfig, reference: View) -> LedgerHeader:
    """Return the ledger header of a new run."""
    fingerprint, checksum, tensors = reference
    return header_of(config, fingerprint, checksum, tensors, ledger_settings(config))


def check_same_base(header: LedgerHeader, found: LedgerHeader) -> None:
    """Refuse to continue a ledger on another base model.

    Args:
        found: the header that a new run would get, from the server's model or the devices'.

    Raises:
        WrongBaseModel: the base models differ; the message names both.
    """
    if found.fingerprint != header.fingerprint:
        raise WrongBaseModel(
            f"the ledger was made on base model {header.fingerprint[:16]}… ({header.model}), this run's model is "
            f"{found.fingerprint[:16]}…: use the same base to resume"
        )
