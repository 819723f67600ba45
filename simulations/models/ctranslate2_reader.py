"""Reader of `model.bin`, CTranslate2's weight format, in one file or in parts, without that library.

The layout is the one written by `ModelSpec._serialize` in `ctranslate2/specs/model_spec.py`: all integers are
little-endian, strings carry a 16-bit length that counts their closing NUL byte.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from zo_common.errors import ModelNotFound, UnsupportedModel

Array = npt.NDArray[Any]

# Versions 4 to 6 share one layout; older ones store an item size instead of a type and cannot tell float16 from int16.
READABLE_VERSIONS = range(4, 7)

# The index is the type id in the file; bfloat16 (5) has no NumPy type and is widened on reading.
_DTYPES = (np.dtype("<f4"), np.dtype("<i1"), np.dtype("<i2"), np.dtype("<i4"), np.dtype("<f2"), np.dtype("<u2"))
_BFLOAT16 = 5


@dataclass(frozen=True)
class CTranslate2Model:
    """The content of one `model.bin`; `aliases` maps further names to names in `variables`."""

    spec_name: str
    revision: int
    variables: Mapping[str, Array]
    aliases: Mapping[str, str]

    def __contains__(self, name: object) -> bool:
        return name in self.variables or name in self.aliases

    def __getitem__(self, name: str) -> Array:
        """Return the variable called `name`, by its own name or an alias; raises UnsupportedModel if there is none."""
        try:
            return self.variables[self.aliases.get(name, name)]
        except KeyError:
            raise UnsupportedModel(
                f"The CTranslate2 model ({self.spec_name}) has no variable '{name}', which every Whisper converted by "
                "a recent CTranslate2 has; convert the original model again."
            ) from None


class _Malformed(Exception):
    """Malformed bytes; the message is the middle part of a sentence."""


class _Cursor:
    """Reads values from consecutive binary files, and never past their end."""

    def __init__(self, files: Sequence[BinaryIO]) -> None:
        self._files = list(files)
        self.left = sum(os.fstat(file.fileno()).st_size for file in files)

    def take(self, count: int, what: str) -> bytes:
        # Comparing first prevents a malformed file from allocating gigabytes of memory.
        if count > self.left:
            raise _Malformed(f"it ends inside {what} ({count} bytes expected, {self.left} left)")
        self.left -= count
        taken = self._files[0].read(count)
        while len(taken) < count:  # a value may begin in one part and end in another
            del self._files[0]
            taken += self._files[0].read(count - len(taken))
        return taken

    def number(self, code: str, what: str) -> int:
        return int(struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}"), what))[0])

    def string(self, what: str) -> str:
        raw = self.take(self.number("H", what), what)
        if not raw.endswith(b"\0"):
            raise _Malformed(f"{what} does not end with a NUL byte")
        try:
            return raw[:-1].decode("utf-8")
        except UnicodeDecodeError:
            raise _Malformed(f"{what} is not UTF-8 text") from None


def _read_array(cursor: _Cursor, name: str) -> Array:
    """Read one variable's shape, type and values; bfloat16 becomes float32 (exact), others stay as stored."""
    what = f"the variable '{name}'"
    shape = tuple(cursor.number("I", what) for _ in range(cursor.number("B", what)))
    type_id = cursor.number("B", what)
    size = cursor.number("I", what)
    if type_id >= len(_DTYPES):
        raise _Malformed(f"{what} has the unknown type {type_id}")
    dtype = _DTYPES[type_id]
    if size != math.prod(shape) * dtype.itemsize:
        raise _Malformed(f"{what} of shape {shape} announces {size} bytes")
    array = np.frombuffer(cursor.take(size, what), dtype).reshape(shape)
    if type_id == _BFLOAT16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array


def _read(files: Sequence[BinaryIO]) -> CTranslate2Model:
    cursor = _Cursor(files)
    version = cursor.number("I", "the header")
    if version not in READABLE_VERSIONS:
        raise _Malformed(f"its first four bytes say version {version}")
    spec_name = cursor.string("the header")
    revision = cursor.number("I", "the header")
    variables: dict[str, Array] = {}
    for _ in range(cursor.number("I", "the header")):
        name = cursor.string("a variable's name")
        variables[name] = _read_array(cursor, name)
    aliases: dict[str, str] = {}
    for _ in range(cursor.number("I", "the list of aliases")):
        alias = cursor.string("the list of aliases")
        aliases[alias] = cursor.string("the list of aliases")
        if aliases[alias] not in variables:
            raise _Malformed(f"the alias '{alias}' stands for '{aliases[alias]}', which is not in it")
    if cursor.left:
        raise _Malformed(f"{cursor.left} bytes follow its end")
    return CTranslate2Model(spec_name, revision, variables, aliases)


def read_variables(path: Path | Sequence[Path]) -> CTranslate2Model:
    """Read a `model.bin`; the arrays are read-only and keep the file's type (bfloat16 becomes float32, exactly).

    Args:
        path: the file, or its parts in order; they are read as one file.

    Raises:
        ModelNotFound: there is no such file.
        UnsupportedModel: the file is truncated, or not of CTranslate2's format 4 to 6.
    """
    paths = [path] if isinstance(path, Path) else list(path)
    try:
        with ExitStack() as stack:
            return _read([stack.enter_context(part.open("rb")) for part in paths])
    except OSError as error:
        raise ModelNotFound(
            f"Cannot read '{error.filename or paths[0]}' ({error.strerror}); "
            "name the model.bin of a CTranslate2 model directory."
        ) from None
    except _Malformed as error:
        raise UnsupportedModel(
            f"'{' + '.join(map(str, paths))}' is not a complete CTranslate2 model of format version "
            f"{READABLE_VERSIONS[0]} to {READABLE_VERSIONS[-1]}: {error}; copy the file again or convert the original "
            "model again."
        ) from None
