"""Device keys: their form, and which public keys are taken."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key

from zo_common.device_key import make_key, new_device_key, read_public_key
from zo_common.errors import ConfigError


def test_a_device_key_is_an_openssh_pair_on_p384(tmp_path: Path) -> None:
    private, public = new_device_key()
    (tmp_path / "node.pub").write_bytes(public)

    loaded = load_ssh_private_key(private, None)

    assert isinstance(loaded, ec.EllipticCurvePrivateKey)
    assert loaded.curve.name == "secp384r1"
    assert loaded.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) == public
    assert read_public_key(str(tmp_path / "node.pub")) == public


def test_a_public_key_loses_its_comment(tmp_path: Path) -> None:
    _, public = new_device_key()
    (tmp_path / "node.pub").write_bytes(public + b" somebody@somewhere\n")

    assert read_public_key(str(tmp_path / "node.pub")) == public


def test_other_keys_than_ecdsa_public_ones_are_refused(tmp_path: Path) -> None:
    other = ed25519.Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    secret, _ = new_device_key()
    pem = ec.generate_private_key(ec.SECP384R1()).public_key()
    spki = pem.public_bytes(Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)

    for content in (other, secret, spki, b""):
        (tmp_path / "key").write_bytes(content)
        with pytest.raises(ConfigError, match="zo-asr worker key"):
            read_public_key(str(tmp_path / "key"))


def test_a_key_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    line = make_key(tmp_path)

    assert make_key(tmp_path) == line == (tmp_path / "node.key.pub").read_text().strip()
    assert stat.S_IMODE((tmp_path / "node.key").stat().st_mode) == 0o600
    assert read_public_key(f"{line} anna@there") == line.encode()


def test_a_file_that_is_no_key_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "node.key").write_bytes(b"something else")

    with pytest.raises(ConfigError, match="move it away"):
        make_key(tmp_path)
    with pytest.raises(ConfigError, match="is no folder"):
        make_key(tmp_path / "gone")

    assert (tmp_path / "node.key").read_bytes() == b"something else"
