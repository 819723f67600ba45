"""A device's node key: an EC key pair in OpenSSH form, with which its SuperNode logs in. It is made on the device."""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from zo_common.binary.durable import PRIVATE, write_durably
from zo_common.errors import ConfigError

KEY_NAME = "node.key"
PUBLIC_NAME = "node.key.pub"
_CURVES = ("secp256r1", "secp384r1", "secp521r1")  # Flower takes no other
_MADE_BY = "zo-asr worker key, or: ssh-keygen -t ecdsa -b 384 -N '' -f node.key"


def new_device_key() -> tuple[bytes, bytes]:
    """Return a new key pair (EC P-384, OpenSSH form, as SuperNode reads it): private key, public key."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    return private, _line(key.public_key())


def make_key(folder: Path) -> str:
    """Return the public line of a folder's `node.key`, which is made if there is none, readable by its owner alone.

    Raises:
        ConfigError: there is no such folder, or the key in it is no EC private key in OpenSSH form.
    """
    path = folder / KEY_NAME
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder: name the one that was carried here from the server")
    if path.exists():
        public = _public_line(path)
    else:
        private, public = new_device_key()
        write_durably(path, private, PRIVATE)
    write_durably(folder / PUBLIC_NAME, public + b"\n")
    return public.decode()


def read_public_key(given: str) -> bytes:
    """Read a device's public key, without its comment, from its line or from a file with that line.

    Raises:
        ConfigError: no such file, a private key, or not an EC key of P-256, P-384 or P-521.
    """
    expected = f"expected the line or the .pub file of: {_MADE_BY}"
    if given.startswith("ecdsa-"):
        data, what = given.encode(), "the given line"
    else:
        what = given
        try:
            data = Path(given).read_bytes()
        except OSError:
            raise ConfigError(f"{given} cannot be read: {expected}") from None
    try:
        public = serialization.load_ssh_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(f"{what} is not an OpenSSH public key: {expected}") from None
    if not isinstance(public, ec.EllipticCurvePublicKey) or public.curve.name not in _CURVES:
        raise ConfigError(f"{what} holds a key of another kind: {expected}")
    return _line(public)


def _public_line(path: Path) -> bytes:
    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in _CURVES:
        raise ConfigError(
            f"{path} holds no EC private key in OpenSSH form without passphrase: move it away, and make one anew"
        )
    return _line(key.public_key())


def _line(public: ec.EllipticCurvePublicKey) -> bytes:
    return public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
