"""Direction seeds that a device has answered under masks, and for whom, remembered for good.

The scalars of a seed are the same however often they are asked for. Two sums of them over sets that differ by one
device give that device's scalars by subtraction, so a seed is summed once: in one session, with one key of this device,
for one list of devices. Another run id, a new Flower run or a resume makes another session, and is refused. So is a
plan with such a seed whose answer would be seen alone.

A round that is asked for again, as after a server's crash, has other directions (`zo_common.directions.seeds`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from client.device.sealed_json import SealedJson
from zo_common.binary.locked import locked
from zo_common.errors import ConfigError, Refusal

MASKED_NAME = "masked.seeds"
_LOST = (
    "nobody knows which directions were masked: put a backup in its place, or remove it and never use an earlier "
    "run-seed again"
)


class Seeds(Protocol):
    """A memory of masked seeds."""

    def claim(self, seed: int, part: bytes) -> None:
        """As `MaskedSeeds.claim`."""

    def refuse_bare(self, seed: int) -> None:
        """As `MaskedSeeds.refuse_bare`."""


class MaskedSeeds:
    """The seeds in a file, whose folder exists; one file for each device, whatever client id it is asked by."""

    def __init__(self, path: Path) -> None:
        self._file = SealedJson(path, b"ZOMS", 1, _LOST)

    def claim(self, seed: int, part: bytes) -> None:
        """Enter a seed, on disk when this returns; what is masked must not leave if this raises. Processes take turns.

        Args:
            part: digest of the session, of this device's key in it and of the devices in the sum.

        Raises:
            Refusal: the seed was masked for others.
            ConfigError: the file cannot be read or written.
        """
        try:
            with locked(self._file.path):
                known, key = self._file.read(), f"{seed:016x}"
                check_claim(seed, known.get(key, part.hex()) == part.hex())
                if key not in known:
                    self._file.write(known | {key: part.hex()})
        except OSError as error:  # of the lock
            raise ConfigError(f"{self._file.path} cannot be written ({error.strerror}): nothing is answered") from None

    def refuse_bare(self, seed: int) -> None:
        """Refuse to answer a masked seed once more in the clear.

        Raises:
            Refusal: it was masked.
            ConfigError: the file cannot be read.
        """
        check_bare(seed, f"{seed:016x}" not in self._file.read())


def check_claim(seed: int, allowed: bool) -> None:
    """Refuse to mask a seed for others than before.

    Raises:
        Refusal: that.
    """
    if not allowed:
        raise Refusal(
            f"directions of seed {seed:016x} were masked in another sum, and two sums would show what one device "
            "measured: give another run another run-seed"
        )


def check_bare(seed: int, allowed: bool) -> None:
    """Refuse to answer a masked seed in the clear.

    Raises:
        Refusal: that.
    """
    if not allowed:
        raise Refusal(
            f"directions of seed {seed:016x} were masked in a secure sum and are not answered in the clear: give "
            "this run another run-seed"
        )
