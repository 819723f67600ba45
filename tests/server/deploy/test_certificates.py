"""A deployment's authority and certificates, as TLS and Flower check them."""

from __future__ import annotations

import socket
import ssl
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from signed import issued_by

from server.deploy.certificates import (
    Authority,
    client_context,
    days_left,
    load_authority,
    new_authority,
    private_pem,
    read_certificate,
    server_certificate,
    write_private,
)
from zo_common.errors import ConfigError

NOW = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return new_authority()


def _written(folder: Path, authority: Authority, hosts: tuple[str, ...], now: datetime | None = None) -> None:
    certificate, key = server_certificate(authority, hosts, now)
    (folder / "ca.crt").write_bytes(authority.certificate_pem)
    (folder / "ca.key").write_bytes(authority.key_pem)
    (folder / "server.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / "server.key").write_bytes(private_pem(key))


def _handshake(folder: Path, hostname: str, trusted: Path | None = None) -> dict[str, object]:
    """The certificate that a client sees which connects to `hostname` (over a socket pair)."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(folder / "server.crt", folder / "server.key")
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    theirs.settimeout(10)

    def serve() -> None:
        try:
            serving.wrap_socket(theirs, server_side=True).close()
        except (ssl.SSLError, OSError):
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client_context(trusted or folder / "ca.crt").wrap_socket(ours, server_hostname=hostname) as tls:
            return dict(tls.getpeercert() or {})
    finally:
        thread.join(10)


@pytest.mark.parametrize("host", ["zo.example.org", "192.0.2.7", "2001:db8::1", "localhost", "127.0.0.1"])
def test_tls_accepts_the_server_under_every_host_and_on_loopback(
    authority: Authority, tmp_path: Path, host: str
) -> None:
    _written(tmp_path, authority, ("zo.example.org", "192.0.2.7", "2001:db8::1"))

    assert _handshake(tmp_path, host)["subjectAltName"]


@pytest.mark.parametrize("host", ["other.example.org", "192.0.2.8"])
def test_tls_refuses_another_host(authority: Authority, tmp_path: Path, host: str) -> None:
    _written(tmp_path, authority, ("zo.example.org", "192.0.2.7"))

    with pytest.raises(ssl.SSLCertVerificationError, match=r"mismatch|not valid for"):
        _handshake(tmp_path, host)


def test_tls_refuses_another_authority(authority: Authority, tmp_path: Path) -> None:
    _written(tmp_path, authority, ("localhost",))
    (tmp_path / "other.crt").write_bytes(new_authority().certificate_pem)

    with pytest.raises(ssl.SSLCertVerificationError):
        _handshake(tmp_path, "localhost", tmp_path / "other.crt")


def test_tls_refuses_an_expired_certificate(authority: Authority, tmp_path: Path) -> None:
    _written(tmp_path, authority, ("localhost",), datetime.now(UTC) - timedelta(days=366))

    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        _handshake(tmp_path, "localhost")


def test_the_authority_may_sign_servers_and_nothing_below_them() -> None:
    extensions = new_authority(NOW).certificate.extensions

    constraints = extensions.get_extension_for_class(x509.BasicConstraints)
    usage = extensions.get_extension_for_class(x509.KeyUsage).value
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
    assert usage.key_cert_sign
    assert not usage.digital_signature


def test_the_server_certificate_serves_and_signs_nothing(authority: Authority) -> None:
    certificate, key = server_certificate(authority, ("a.example", "localhost"), NOW)

    extensions = certificate.extensions
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert names.get_values_for_type(x509.DNSName) == ["a.example", "localhost"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    assert certificate.public_key() == key.public_key()


def test_a_server_certificate_lasts_a_year_and_its_authority_ten(authority: Authority) -> None:
    certificate, _ = server_certificate(authority, ("a",), NOW)

    assert days_left(certificate, NOW) == 365
    assert days_left(certificate, NOW + timedelta(days=400)) == -35
    assert days_left(new_authority(NOW).certificate, NOW) == 3650
    assert certificate.not_valid_before_utc < NOW


def test_issued_by_tells_one_authority_from_another(authority: Authority) -> None:
    certificate, _ = server_certificate(authority, ("a",))

    assert issued_by(certificate, authority.certificate)
    assert not issued_by(certificate, new_authority().certificate)


def test_an_authority_is_read_back(authority: Authority, tmp_path: Path) -> None:
    _written(tmp_path, authority, ("a",))

    loaded = load_authority(tmp_path / "ca.crt", tmp_path / "ca.key")

    assert loaded.certificate == authority.certificate
    assert loaded.key_pem == authority.key_pem


@pytest.mark.parametrize(
    ("key", "word"), [(None, "cannot be read"), (b"junk", "not a PEM private key"), ("other", "is not the key of")]
)
def test_a_wrong_authority_key_is_told(
    authority: Authority, tmp_path: Path, key: bytes | str | None, word: str
) -> None:
    _written(tmp_path, authority, ("a",))
    (tmp_path / "ca.key").unlink()
    if key is not None:
        (tmp_path / "ca.key").write_bytes(new_authority().key_pem if key == "other" else bytes(key))

    with pytest.raises(ConfigError, match=word):
        load_authority(tmp_path / "ca.crt", tmp_path / "ca.key")


@pytest.mark.parametrize("content", [None, b"not a certificate"])
def test_a_missing_or_damaged_certificate_is_told(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "server.crt").write_bytes(content)

    with pytest.raises(ConfigError, match=r"server\.crt"):
        read_certificate(tmp_path / "server.crt")
    with pytest.raises(ConfigError, match=r"server\.crt"):
        client_context(tmp_path / "server.crt")


def test_a_private_file_is_its_owners_alone_from_the_start(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"old and open")
    path.chmod(0o644)

    write_private(path, b"new")

    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["secret"]
