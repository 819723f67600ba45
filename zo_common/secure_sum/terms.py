"""Terms of a cohort's secure aggregation: run, round, plan, length of the vectors, threshold, neighbours."""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass
from functools import cached_property

from zo_common.binary.packing import Reader
from zo_common.errors import CodecError, ConfigError

PERSON = b"zo-asr/secagg/v2"
LAYOUT = "16sIIdH?32s"
SESSION_BYTES = 16
PLAN_BYTES = 32
MOST_DEVICES = 1 << 16
MOST_LENGTH = 1 << 22
LEAST_THRESHOLD = 2 / 3


def check_policy(threshold: float, neighbours: int) -> None:
    """Check that the settings can protect a device.

    Raises:
        ConfigError: a setting is out of range; with a threshold below half a server could obtain shares of both masks
            of one device.
    """
    if not (math.isfinite(threshold) and 0.5 <= threshold < 1):
        raise ConfigError(
            f"secure-threshold is {threshold}, expected 0.5 … 1, the share of devices that must stay (2/3 where the "
            "server may lie)"
        )
    if not (neighbours == 0 or (4 <= neighbours < MOST_DEVICES and neighbours % 2 == 0)):
        raise ConfigError(
            f"secure-neighbours is {neighbours}, expected 0 (every device masks with every other) or an even number "
            f"from 4 to {MOST_DEVICES - 2}"
        )


@dataclass(frozen=True)
class Terms:
    """Terms of one secure sum; keys, masks and signatures are valid for these alone.

    Attributes:
        run_id: 16 bytes that name the run.
        server_round: the round.
        length: numbers in each device's vector.
        threshold: more than this share of the devices must stay to the end, 0.5 … 1.
        neighbours: number of others with which each device masks; 0 for all (Bonawitz et al. 2017), else the regular
            graph of Bell et al. 2020.
        weighted: each device's vector is weighted by its number of examples; else by 1. All of a cohort know the same
            terms, or a server could give one device so large a weight that the sum reveals its vector.
        plan: 32 bytes, a digest of what each device is asked (`zo_common.wire.plan_digest`). Of two plans the sessions
            differ, and with them keys, masks and signatures: a sum is of devices that were asked alike.

    Raises:
        ConfigError: see `check_policy`.
    """

    run_id: bytes
    server_round: int
    length: int
    threshold: float = 2 / 3
    neighbours: int = 0
    weighted: bool = False
    plan: bytes = bytes(PLAN_BYTES)

    def __post_init__(self) -> None:
        check_policy(self.threshold, self.neighbours)
        if (
            (len(self.run_id), len(self.plan)) != (16, PLAN_BYTES)
            or self.server_round < 1
            or not 1 <= self.length <= MOST_LENGTH
        ):
            raise ConfigError(
                f"terms for round {self.server_round} with vectors of {self.length} numbers cannot be used: expected "
                f"rounds from 1 and 1 … {MOST_LENGTH} numbers; lower num-queries or local-steps"
            )

    @cached_property
    def session(self) -> bytes:
        """Hash of all terms, 16 bytes."""
        return hashlib.blake2b(self.encode(), digest_size=SESSION_BYTES, person=PERSON).digest()

    def check_against_liars(self) -> None:
        """Check that the threshold protects a device from a server that lies, with fewer than a third of the devices.

        Raises:
            ConfigError: it does not; below 2/3 a server with colluders could obtain both masks of one device.
        """
        if self.threshold < LEAST_THRESHOLD:
            raise ConfigError(
                f"secure-threshold is {self.threshold:.4g}, this device has peers.keys and expects at least 2/3, such "
                "as 0.6667"
            )

    def needed(self, devices: int) -> int:
        """Return how many of `devices` must stay: more than the threshold's share, but not more than there are."""
        return min(devices, math.floor(self.threshold * devices) + 1)

    def encode(self) -> bytes:
        """Pack to 67 bytes."""
        fields = self.run_id, self.server_round, self.length, self.threshold, self.neighbours, self.weighted, self.plan
        return struct.pack("<" + LAYOUT, *fields)

    @classmethod
    def take(cls, reader: Reader) -> Terms:
        """Read terms from the front of untrusted bytes.

        Raises:
            CodecError: a field is out of range.
        """
        try:
            return cls(*reader.take(LAYOUT))
        except ConfigError as error:
            raise CodecError(f"secure aggregation's terms: {error}") from None
