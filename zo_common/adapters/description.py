"""The file names of a published adapter, and its machine-readable description."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from zo_common.ledger.file import LEDGER_NAME
from zo_common.ledger.ledger import Ledger

CONFIG_NAME = "zo_adapter_config.json"
RESULT_NAME = "result.json"
CARD_NAME = "README.md"
FILES = (CONFIG_NAME, LEDGER_NAME, RESULT_NAME, CARD_NAME)


@dataclass(frozen=True)
class AdapterConfig:
    """The machine-readable description, similar to PEFT's `adapter_config.json`.

    Attributes:
        base_model_name_or_path: hub id of the base.
        revision: commit of the base on the hub; None if unknown.
        base_fingerprint: of the base, 64 hex digits, as in the ledger.
        checksum: state checksum of the adapted weights, 16 hex digits; "" if the ledger records none.
        ledger: name of the ledger's file.
        adapter_type: distinguishes it from PEFT's.
    """

    base_model_name_or_path: str
    revision: str | None
    base_fingerprint: str
    checksum: str
    rounds: int
    trained_tensors: str
    trained_weights: int
    language: str
    ledger: str = LEDGER_NAME
    adapter_type: str = "ZO_LEDGER"


def describe(ledger: Ledger, revision: str) -> AdapterConfig:
    """Describe a ledger to publish, whose base is on the hub; `revision` is "" for an unknown commit."""
    header = ledger.header
    checksum = ledger.records[-1].checksum if ledger.records else header.base_checksum
    return AdapterConfig(
        header.model,
        revision or None,
        header.fingerprint,
        f"{checksum:016x}" if checksum else "",
        ledger.last_round,
        header.pattern,
        sum(prod(tensor.shape) for tensor in header.tensors),
        str(header.settings.get("language", "")),
    )
