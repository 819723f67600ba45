"""Keys and certificates of a deployment: its own authority, and the server's certificate."""

from __future__ import annotations

import ipaddress
import os
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from zo_common.errors import ConfigError

AUTHORITY_DAYS = 3650
SERVER_DAYS = 365
WARN_BELOW_DAYS = 30
ALWAYS = ("localhost", "127.0.0.1")
_BACKDATED = timedelta(hours=1)  # devices whose clock is a little behind accept a new certificate


@dataclass(frozen=True)
class Authority:
    """A certificate authority: its certificate and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def certificate_pem(self) -> bytes:
        """The certificate as PEM, which devices receive."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The private key as PEM, which never leaves the server."""
        return private_pem(self.key)


def new_authority(now: datetime | None = None) -> Authority:
    """Return a self-signed authority (EC P-384, ten years) that may sign server certificates but no other authority."""
    now = now or datetime.now(UTC)
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"ZO-ASR deployment {now:%Y-%m-%d}")])
    usage = _key_usage(key_cert_sign=True, crl_sign=True)
    builder = (
        _builder(name, key.public_key(), now, AUTHORITY_DAYS)
        .issuer_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
    )
    return Authority(builder.sign(key, hashes.SHA384()), key)


def load_authority(certificate: Path, key: Path) -> Authority:
    """Read an authority from its files.

    Raises:
        ConfigError: a file is missing, is not PEM, or the key is not the certificate's.
    """
    loaded = read_certificate(certificate)
    try:
        private = serialization.load_pem_private_key(key.read_bytes(), None)
    except OSError:
        raise ConfigError(
            f"{key} cannot be read: put the authority's key back there, or make a new one with renew --ca"
        ) from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(f"{key} is not a PEM private key: restore it from a copy, or run renew --ca") from None
    if not isinstance(private, ec.EllipticCurvePrivateKey) or private.public_key() != loaded.public_key():
        raise ConfigError(f"{key} is not the key of {certificate}: restore both from one copy, or run renew --ca")
    return Authority(loaded, private)


def server_certificate(
    authority: Authority, hosts: tuple[str, ...], now: datetime | None = None
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Return a server certificate (EC P-256, one year) for the hosts, localhost and 127.0.0.1, and its new key."""
    now = now or datetime.now(UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    names = [_general_name(host) for host in dict.fromkeys((*hosts, *ALWAYS))]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ZO-ASR server")])
    identifier = authority.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        _builder(subject, key.public_key(), now, SERVER_DAYS)
        .issuer_name(authority.certificate.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
    )
    return builder.sign(authority.key, hashes.SHA384()), key


def _builder(
    subject: x509.Name, public: ec.EllipticCurvePublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _key_usage(**used: bool) -> x509.KeyUsage:
    names = (
        "digital_signature content_commitment key_encipherment data_encipherment key_agreement "
        "key_cert_sign crl_sign encipher_only decipher_only"
    )
    return x509.KeyUsage(**{name: used.get(name, False) for name in names.split()})


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def read_certificate(path: Path) -> x509.Certificate:
    """Read the first certificate of a PEM file.

    Raises:
        ConfigError: the file is missing or not a certificate.
    """
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError:
        raise ConfigError(f"{path} cannot be read: is this a deployment folder?") from None
    except ValueError:
        raise ConfigError(f"{path} is not a PEM certificate: restore it from a copy, or run renew") from None


def days_left(certificate: x509.Certificate, now: datetime | None = None) -> float:
    """Return the days until a certificate expires; negative if it has expired."""
    return (certificate.not_valid_after_utc - (now or datetime.now(UTC))) / timedelta(days=1)


def client_context(authority: Path) -> ssl.SSLContext:
    """Return TLS settings of a client that trusts only the deployment's own authority.

    Raises:
        ConfigError: as `read_certificate`.
    """
    read_certificate(authority)  # ssl does not name the file
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(authority)
    return context


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as unencrypted PKCS #8 PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def write_private(path: Path, data: bytes) -> None:
    """Write or replace a file that only its owner may read; it is never readable by others, not even for a moment."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
