"""Signatures by the devices' node keys, with which SuperNodes log in, so that swapped keys are detected."""

from __future__ import annotations

from collections.abc import Mapping

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from zo_common.errors import ConfigError

PEERS_NAME = "peers.keys"
MOST_SIGNATURE_BYTES = 160  # ECDSA on P-521 in DER takes 139
_ALGORITHM = ec.ECDSA(hashes.SHA256())


class NodeSigner:
    """Signer with a device's node key.

    Args:
        private: the OpenSSH private key file's bytes (EC, no passphrase).

    Raises:
        ConfigError: the bytes are no such key.
    """

    def __init__(self, private: bytes) -> None:
        try:
            key = load_ssh_private_key(private, None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ConfigError(
                "node-key holds no EC private key in OpenSSH form without passphrase: give it the file that the "
                "SuperNode logs in with"
            )
        self._key = key

    def sign(self, data: bytes) -> bytes:
        """Return an ECDSA signature (SHA-256, DER) of at most 160 bytes."""
        return self._key.sign(data, _ALGORITHM)


class PeerKeys:
    """The public node keys of all devices of a deployment, as the operator copied them to this one.

    Args:
        keys: OpenSSH public keys by client id.

    Raises:
        ConfigError: one is not an EC key.
    """

    def __init__(self, keys: Mapping[int, bytes]) -> None:
        self._keys: dict[int, ec.EllipticCurvePublicKey] = {}
        for client, data in keys.items():
            try:
                key = load_ssh_public_key(data)
            except (ValueError, UnsupportedAlgorithm):
                key = None
            if not isinstance(key, ec.EllipticCurvePublicKey):
                raise ConfigError(f"peer-keys: the key of device {client} is no OpenSSH EC public key: copy it again")
            self._keys[client] = key

    @classmethod
    def parse(cls, text: str) -> PeerKeys:
        """Parse lines of `client-id key-type base64 [comment]`; empty lines and text after `#` are ignored.

        Raises:
            ConfigError: a line of another form, or two keys for one device.
        """
        keys: dict[int, bytes] = {}
        for number, line in enumerate(text.splitlines(), 1):
            words = line.split("#")[0].split()
            if not words:
                continue
            if len(words) < 3 or not words[0].isascii() or not words[0].isdigit() or int(words[0]) in keys:
                raise ConfigError(
                    f"peer-keys line {number} is {line[:60]!r}, expected one 'client-id ecdsa-sha2-… base64' for each "
                    "device: take the peers.keys of the deployment's folder"
                )
            keys[int(words[0])] = " ".join(words[1:3]).encode()
        return cls(keys)

    def __contains__(self, client_id: int) -> bool:
        return client_id in self._keys

    def holds(self, client_id: int, data: bytes, signature: bytes) -> bool:
        """Return whether the signature is the device's for this data."""
        key = self._keys.get(client_id)
        if key is None or not 0 < len(signature) <= MOST_SIGNATURE_BYTES:
            return False
        try:
            key.verify(signature, data, _ALGORITHM)
        except InvalidSignature:
            return False
        return True


def peer_line(client_id: int, public: str) -> str:
    """Return a device's line of a peer-keys file."""
    return f"{client_id} {public.strip()}\n"
