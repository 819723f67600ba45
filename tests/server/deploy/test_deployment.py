"""The deployment folder as the server's commands see it."""

from __future__ import annotations

import ipaddress
import stat
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st
from signed import issued_by

from server.deploy import folder as deploy_folder
from server.deploy.certificates import days_left, read_certificate
from server.deploy.deployment import Deployment, Device, check_host, check_name
from server.deploy.devices import add_device
from server.deploy.folder import init_folder, renew
from zo_common.device_key import new_device_key
from zo_common.errors import ConfigError
from zo_common.secure_sum.node_keys import PEERS_NAME, NodeSigner, PeerKeys


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    """A folder with two devices."""
    made = Deployment(root=tmp_path / "deployment", hosts=("localhost", "192.0.2.7"))
    init_folder(made, ["anna", "ben"], make_keys=True)
    return made


def test_a_folder_is_its_owners_alone(deployment: Deployment) -> None:
    private = [deployment.authority_key, deployment.key, deployment.secret]
    private += [deployment.device_folder_of(name) / "node.key" for name in ("anna", "ben")]

    assert stat.S_IMODE(deployment.root.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o600}
    assert len(deployment.secret.read_bytes()) == 32


def test_a_folder_is_opened_as_it_was_made(deployment: Deployment) -> None:
    assert Deployment.open(deployment.root) == deployment
    assert issued_by(read_certificate(deployment.certificate), read_certificate(deployment.authority))


def test_devices_have_numbers_and_keys_of_their_own(deployment: Deployment) -> None:
    devices = deployment.devices()

    assert [(d.name, d.client_id, d.node_id) for d in devices.values()] == [("anna", 0, ""), ("ben", 1, "")]
    assert devices["anna"].public_key != devices["ben"].public_key
    units = [(deployment.device_folder_of(name) / "zo-asr-supernode.service").read_text() for name in devices]
    assert ["--port 9500 " in units[0], "--port 9501 " in units[1]] == [True, True]
    assert 'client-id=1 device-name="ben" worker-address="unix:' in units[1]


def test_the_keys_of_all_enrolled_devices_are_in_one_file(deployment: Deployment) -> None:
    path = deployment.root / PEERS_NAME
    peers = PeerKeys.parse(path.read_text())
    signer = NodeSigner((deployment.device_folder_of("ben") / "node.key").read_bytes())
    assert peers.holds(1, b"word", signer.sign(b"word")) and not peers.holds(0, b"word", signer.sign(b"word"))
    with deployment.change_devices() as devices:
        devices["ben"].revoked = True
    assert 0 in PeerKeys.parse(path.read_text()) and 1 not in PeerKeys.parse(path.read_text())


def test_a_second_init_is_refused_and_changes_nothing(deployment: Deployment) -> None:
    before = deployment.authority.read_bytes()

    with pytest.raises(ConfigError, match="not empty"):
        init_folder(deployment)

    assert deployment.authority.read_bytes() == before


def test_an_empty_folder_may_be_used(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()

    init_folder(Deployment(root=tmp_path / "made", hosts=("localhost",)))

    assert Deployment.open(tmp_path / "made").hosts == ("localhost",)


@pytest.mark.parametrize("made_before", [False, True])
def test_nothing_is_left_of_an_init_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made_before: bool
) -> None:
    root = tmp_path / "deployment"
    if made_before:
        root.mkdir()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(deploy_folder, "write_example_run", full)

    with pytest.raises(OSError, match="No space"):
        init_folder(Deployment(root=root, hosts=("localhost",)), ["anna"])

    assert root.exists() == made_before
    assert not made_before or list(root.iterdir()) == []


@pytest.mark.parametrize("name", ["", "a b", "../x", "a/b", "-a", "a.b", "ä", "a" * 33, "a\n", "$(x)", "a;b", "'"])
def test_odd_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="is no name"):
        init_folder(Deployment(root=tmp_path / "d", hosts=("localhost",)), [name])
    assert not (tmp_path / "d").exists()


@given(st.text(max_size=40))
def test_a_name_is_a_plain_word(name: str) -> None:
    try:
        check_name(name, "device")
    except ConfigError:
        return
    assert name.replace("-", "a").replace("_", "a").isalnum()
    assert name.isascii()
    assert len(name) <= 32


@pytest.mark.parametrize("host", ["", "a b", "http://a", "a:1", "a..b", "-a.b", "*.example.org", "1.2.3.4.5", "a/24"])
def test_odd_hosts_are_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="neither a DNS name nor an IP address"):
        check_host(host)


@given(st.ip_addresses())
def test_every_address_is_a_host(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    assert check_host(str(address)) == str(address)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"port": 0}, "port is 0"),
        ({"port": 70000}, "port is 70000"),
        ({"superlink_port": 9443}, "both 9443"),
        ({"hosts": ()}, "no host given"),
        ({"model": 'a"b'}, "without quotes"),
        ({"data": "$(rm)"}, "without quotes"),
        ({"root": Path("/tmp/with space")}, "move it"),
        ({"device_folder": "/etc/%h"}, "move it"),
    ],
)
def test_wrong_settings_are_told(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        Deployment(**{"root": Path("/srv/zo"), "hosts": ("localhost",), **changes})


def test_a_folder_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="make one with init"):
        Deployment.open(tmp_path)


def test_an_unknown_setting_is_told(deployment: Deployment) -> None:
    path = deployment.root / "deployment.toml"
    path.write_text(path.read_text() + "prot = 1\n")

    with pytest.raises(ConfigError, match="'prot'"):
        Deployment.open(deployment.root)


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("hosts = 7", r"hosts is \[7\]"),
        ("hosts = []", "no host given"),
        ('hosts = ["localhost", 1.5]', "expected a list of names"),
        ('hosts = "local host"', "'local host' is neither"),
        ('port = "9443"', "port is '9443'"),
        ("port = true", "port is True"),
        ("bind = 1", "bind is 1, expected text"),
        ("model = [1]", "model is"),
        ("data = 2020-01-01", "data is"),
        ("device-bin = {}", "device-bin is"),
    ],
)
def test_settings_of_a_wrong_type_are_told(deployment: Deployment, line: str, word: str) -> None:
    path = deployment.root / "deployment.toml"
    kept = tomllib.loads(path.read_text())
    del kept[line.split(" ")[0]]
    path.write_text(f"{tomli_w.dumps(kept)}{line}\n")

    with pytest.raises(ConfigError, match=word):
        Deployment.open(deployment.root)


def test_one_host_needs_no_list(deployment: Deployment) -> None:
    (deployment.root / "deployment.toml").write_text('hosts = "localhost"\n')

    assert Deployment.open(deployment.root).hosts == ("localhost",)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("devices = 7", "devices is 7"),
        ("devices.anna = 7", "'anna' is 7"),
        ("[devices.anna]", "client-id is missing"),
        ("[devices.'../x']\nclient-id = 0\npublic-key = 'k'", "is no name"),
        (
            "[devices.anna]\nclient-id = '0'\npublic-key = 'k'",
            "'anna': client-id is '0', expected a valid integer: ",
        ),
        ("[devices.anna]\nclient-id = -1\npublic-key = 'k'", "client-id is -1, expected greater than or equal to 0"),
        ("[devices.anna]\nclient-id = 0\npublic-key = 1", "public-key is 1, expected a valid string"),
        ("[devices.anna]\nclient-id = 0\npublic-key = 'k'\nnode-id = 7", "node-id is 7, expected a valid string"),
        (
            "[devices.anna]\nclient-id = 0\npublic-key = 'k'\nrevoked = 'no'",
            "revoked is 'no', expected a valid bool",
        ),
    ],
)
def test_devices_of_a_wrong_type_are_told(deployment: Deployment, text: str, word: str) -> None:
    (deployment.root / "devices.toml").write_text(text)

    with pytest.raises(ConfigError, match=word):
        deployment.devices()


def test_a_device_may_bring_its_own_key(deployment: Deployment, tmp_path: Path) -> None:
    _, public = new_device_key()
    (tmp_path / "its.pub").write_bytes(public + b" it@there\n")

    device = add_device(deployment, "cleo", str(tmp_path / "its.pub"))

    folder = deployment.device_folder_of("cleo")
    assert (device.client_id, device.public_key) == (2, public.decode())
    assert not (folder / "node.key").exists()
    assert "worker key" in (folder / "README.md").read_text()


def test_one_key_is_one_device(deployment: Deployment, tmp_path: Path) -> None:
    key = deployment.device_folder_of("anna") / "node.key.pub"

    with pytest.raises(ConfigError, match="key of device 'anna'"):
        add_device(deployment, "cleo", str(key))

    assert "cleo" not in deployment.devices()


def test_a_name_is_taken_until_it_is_revoked(deployment: Deployment) -> None:
    with pytest.raises(ConfigError, match="enrolled already"):
        add_device(deployment, "anna")
    before = deployment.device("anna")
    with deployment.change_devices() as devices:
        devices["anna"].revoked = True

    again = add_device(deployment, "anna", make_key=True)

    assert (again.client_id, again.revoked) == (0, False)
    assert again.public_key != before.public_key


def test_numbers_are_not_used_twice(deployment: Deployment) -> None:
    with deployment.change_devices() as devices:
        devices["ben"].revoked = True

    assert add_device(deployment, "cleo").client_id == 2


def test_devices_are_changed_by_one_command_at_a_time(deployment: Deployment) -> None:
    with deployment.change_devices(), pytest.raises(ConfigError, match="another command"):
        add_device(deployment, "cleo")


def test_a_change_that_fails_is_not_written(deployment: Deployment) -> None:
    with pytest.raises(RuntimeError), deployment.change_devices() as devices:
        devices["cleo"] = Device("cleo", 2, "key")
        raise RuntimeError

    assert list(deployment.devices()) == ["anna", "ben"]


def test_renew_keeps_the_authority(deployment: Deployment) -> None:
    authority, certificate, key = (
        path.read_bytes() for path in (deployment.authority, deployment.certificate, deployment.key)
    )

    todo = renew(deployment, authority=False)

    assert deployment.authority.read_bytes() == authority
    assert deployment.certificate.read_bytes() != certificate
    assert deployment.key.read_bytes() != key
    assert issued_by(read_certificate(deployment.certificate), read_certificate(deployment.authority))
    assert days_left(read_certificate(deployment.certificate)) > 364
    assert "restart SuperLink" in todo[0]
    assert len(todo) == 1


def test_renew_without_the_authoritys_key_changes_nothing(deployment: Deployment) -> None:
    deployment.authority_key.unlink()
    before = deployment.certificate.read_bytes()

    with pytest.raises(ConfigError, match="put the authority's key back"):
        renew(deployment, authority=False)

    assert deployment.certificate.read_bytes() == before


def test_a_new_authority_reaches_every_devices_folder(deployment: Deployment) -> None:
    with deployment.change_devices() as devices:
        devices["ben"].revoked = True
    old = deployment.authority.read_bytes()

    todo = renew(deployment, authority=True)

    carried = deployment.device_folder_of("anna") / "ca.crt"
    assert deployment.authority.read_bytes() == carried.read_bytes() != old
    assert any("anna" in step for step in todo)
    assert not any("ben" in step for step in todo)
