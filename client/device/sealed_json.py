"""Lasting memory of a device, as JSON under a checksum in a file that is its owner's alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zo_common.binary.durable import PRIVATE, seal, unseal, write_durably
from zo_common.errors import ConfigError, ZOError


class SealedJson:
    """An object in a file, whose folder exists; it is empty before the first write.

    Args:
        kind: four bytes that name what the file is.
        lost: what nobody knows if the file cannot be read, and the remedy, for the sentence of the error.
    """

    def __init__(self, path: Path, kind: bytes, version: int, lost: str) -> None:
        self.path = path
        self._kind, self._version, self._lost = kind, version, lost

    def read(self) -> dict[str, Any]:
        """Return the object.

        Raises:
            ConfigError: the file cannot be read, or is damaged.
        """
        try:
            found: dict[str, Any] = json.loads(unseal(self.path.read_bytes(), self._kind, self._version))
            return found
        except FileNotFoundError:
            return {}
        except (OSError, ZOError, ValueError) as error:
            raise ConfigError(f"{self.path} cannot be read ({error}), so {self._lost}") from None

    def write(self, value: dict[str, Any]) -> None:
        """Put another in its place, on disk when this returns.

        Raises:
            ConfigError: the file cannot be written.
        """
        try:
            write_durably(self.path, seal(self._kind, self._version, json.dumps(value).encode()), PRIVATE)
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be written ({error.strerror}): nothing is answered") from None
