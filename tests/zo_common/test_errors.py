"""Each error says whose fault it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import zo_common
from zo_common import console
from zo_common.errors import (
    ChecksumMismatch,
    DeviceError,
    LedgerError,
    NetworkError,
    OperatorError,
    ProtocolMismatch,
    ServerError,
    WrongBaseModel,
    ZOError,
)


def test_every_error_is_of_one_branch() -> None:
    root = Path(zo_common.__file__).parent.parent
    sources = [path.read_text() for name in console.PACKAGES for path in (root / name).rglob("*.py")]
    direct = {name for text in sources for name in re.findall(r"^class (\w+)\(ZOError\)", text, re.MULTILINE)}
    assert direct == {branch.__name__ for branch in (OperatorError, DeviceError, ServerError, NetworkError)}


@pytest.mark.parametrize(
    ("error", "branch"),
    [(ChecksumMismatch, DeviceError), (ProtocolMismatch, NetworkError), (WrongBaseModel, OperatorError)],
)
def test_what_is_not_the_ledgers_fault(error: type[ZOError], branch: type[ZOError]) -> None:
    assert issubclass(error, branch) and not issubclass(error, LedgerError)
