"""Files that are replaced whole or not at all, and envelopes that tell damage from age."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zo_common.binary.durable import seal, unseal, write_durably
from zo_common.errors import CodecError, ProtocolMismatch

OLD, NEW = b"old" * 1000, b"new" * 2000
# writes files of one byte value over and over until it is killed
WRITER = """
import sys
from pathlib import Path
from zo_common.binary.durable import write_durably
n = 0
while True:
    n = (n + 1) % 256
    write_durably(Path(sys.argv[1]), bytes([n]) * 200_000)
    if n == 3:
        print("running", flush=True)
"""


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_the_file_holds_what_was_written_last_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "device.state"

    for data in (OLD, NEW, b""):
        write_durably(path, data)
        assert path.read_bytes() == data
    assert [p.name for p in tmp_path.iterdir()] == ["device.state"]


def test_file_and_folder_are_flushed_before_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    write_durably(tmp_path / "device.state", NEW)

    assert flushed == ["device.state.tmp", tmp_path.name]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "device.state"
    write_durably(path, OLD)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(os, step, _full)
        write_durably(path, NEW)

    assert path.read_bytes() == OLD
    assert [p.name for p in tmp_path.iterdir()] == ["device.state"]


def test_a_failed_first_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", _full)

    with pytest.raises(OSError, match="No space"):
        write_durably(tmp_path / "device.state", NEW)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_disk_that_fills_up_within_the_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "device.state"
    write_durably(path, OLD)
    (tmp_path / "device.state.tmp").symlink_to("/dev/full")

    with pytest.raises(OSError, match="No space"):
        write_durably(path, NEW)

    assert path.read_bytes() == OLD
    assert [p.name for p in tmp_path.iterdir()] == ["device.state"]


def test_what_a_crash_left_beside_the_file_is_in_nobodys_way(tmp_path: Path) -> None:
    path = tmp_path / "device.state"
    write_durably(path, OLD)
    (tmp_path / "device.state.tmp").write_bytes(b"x" * 10_000)

    write_durably(path, NEW)

    assert path.read_bytes() == NEW
    assert [p.name for p in tmp_path.iterdir()] == ["device.state"]


def test_a_missing_folder_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_durably(tmp_path / "missing" / "device.state", NEW)


def test_a_reader_finds_whole_files_while_the_writer_works_and_after_it_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "device.state"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"running\n"
        for _ in range(200):
            data = path.read_bytes()
            assert len(data) == 200_000
            assert data == data[:1] * 200_000
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait(30)

    data = path.read_bytes()
    assert data == data[:1] * 200_000


def test_the_envelope_is_the_documented_one() -> None:
    head = b"ZODV\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00body"
    digest = hashlib.blake2b(head, digest_size=16, person=b"zo-asr/seal/v1").digest()

    assert seal(b"ZODV", 2, b"body") == head + digest
    assert unseal(head + digest, b"ZODV", 2) == b"body"


@given(st.binary(min_size=4, max_size=4), st.integers(0, 2**16 - 1), st.binary(max_size=200))
def test_a_body_survives_its_envelope(kind: bytes, version: int, body: bytes) -> None:
    assert unseal(seal(kind, version, body), kind, version) == body
    assert unseal(seal(kind, version, body), kind, range(version, version + 3)) == body


def test_every_altered_missing_or_extra_byte_is_damage() -> None:
    whole = seal(b"ZODV", 1, b"a body of some length")
    broken = [whole[:n] for n in range(len(whole))] + [whole + b"\x00"]
    broken += [whole[:n] + bytes([whole[n] ^ bit]) + whole[n + 1 :] for n in range(len(whole)) for bit in (1, 128)]

    for data in broken:
        with pytest.raises(CodecError):
            unseal(data, b"ZODV", range(1, 9))


@given(st.binary(max_size=100))
def test_no_bytes_raise_anything_but_a_codec_error(data: bytes) -> None:
    with pytest.raises(CodecError):
        unseal(b"ZODV" + data, b"ZODV", 1)


@pytest.mark.parametrize(
    ("versions", "spelled"), [(3, "reads 3"), (range(2, 3), "reads 2"), (range(2, 5), "reads 2 to 4")]
)
def test_another_version_is_told_from_damage(versions: range | int, spelled: str) -> None:
    with pytest.raises(ProtocolMismatch, match=f"has version 1, this program {spelled}: use a matching release"):
        unseal(seal(b"ZODV", 1, b"body"), b"ZODV", versions)


def test_another_kind_is_told_from_damage() -> None:
    with pytest.raises(CodecError, match=r"starts with b'ZOAN', expected b'ZODV': these bytes are something else"):
        unseal(seal(b"ZOAN", 1, b"body"), b"ZODV", 1)


def test_a_kind_has_four_bytes() -> None:
    with pytest.raises(ValueError, match="expected 4 bytes"):
        seal(b"ZO", 1, b"")
