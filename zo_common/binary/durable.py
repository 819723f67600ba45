"""Files that survive a crash: written atomically, in an envelope with version and checksum."""

from __future__ import annotations

import hashlib
import os
import struct
from contextlib import suppress
from pathlib import Path

from zo_common.binary.packing import Reader
from zo_common.errors import CodecError, ProtocolMismatch

_PERSON = b"zo-asr/seal/v1"
_HEAD = "4sHQ"
_DIGEST_BYTES = 16
PRIVATE = 0o600
"""Rights of a file that its owner alone may read."""


def sync_directory(directory: Path) -> None:
    """Make names created, renamed or removed in a folder durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes, mode: int | None = None) -> None:
    """Replace a file atomically: a reader, also after a crash, finds either the old bytes or the new ones.

    The bytes go to `<name>.tmp` beside it (one writer at a time), which then takes the file's name.

    Args:
        mode: the file's rights, such as `PRIVATE`, whatever the umask; default: what the umask leaves of 0666.

    Raises:
        OSError: the file is unchanged and no temporary file is left, unless only flushing the folder failed.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode or 0o666)
        with os.fdopen(descriptor, "wb") as file:
            if mode is not None:  # the umask may have taken some, or the file may be one that a crash left
                os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_directory(path.parent)


def seal(kind: bytes, version: int, body: bytes) -> bytes:
    """Return an envelope: kind (4 bytes), version u16, length u64, body, and BLAKE2b-128 of all that."""
    if len(kind) != 4:
        raise ValueError(f"kind is {kind!r}, expected 4 bytes")
    data = struct.pack("<" + _HEAD, kind, version, len(body)) + body
    return data + _digest(data)


def unseal(data: bytes, kind: bytes, versions: range | int) -> bytes:
    """Return the body of an envelope of this kind and of one of these versions.

    Raises:
        CodecError: another kind of file, or a damaged one.
        ProtocolMismatch: intact, but of another version.
    """
    reader = Reader(data, "file")
    found, version, length = reader.take(_HEAD)
    if found != kind:
        raise CodecError(f"file starts with {found!r}, expected {kind!r}: these bytes are something else")
    body = reader.raw(length)
    digest = reader.raw(_DIGEST_BYTES)
    reader.finish()
    if digest != _digest(memoryview(data)[:-_DIGEST_BYTES]):
        raise CodecError(f"file of kind {kind!r} does not match its checksum: it was damaged or altered")
    accepted = range(versions, versions + 1) if isinstance(versions, int) else versions
    if version not in accepted:
        raise ProtocolMismatch(
            f"file of kind {kind!r} has version {version}, this program reads {_spell(accepted)}: "
            "use a matching release"
        )
    return body


def _digest(data: bytes | memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES, person=_PERSON).digest()


def _spell(versions: range) -> str:
    return str(versions[0]) if len(versions) == 1 else f"{versions[0]} to {versions[-1]}"
