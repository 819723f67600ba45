"""Registrations and revocations that are cut off at any point, before a SuperLink in memory."""

from __future__ import annotations

import tempfile
import tomllib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from memory_superlink import Killed, SuperLink

from server.deploy.deployment import Deployment
from server.deploy.devices import enroll, register_device, revoke
from server.deploy.flower import FlowerError
from server.deploy.folder import init_folder
from zo_common.errors import ConfigError

MOST_STEPS = 60
Change = Callable[[SuperLink, Deployment], None]


@pytest.fixture
def superlink(monkeypatch: pytest.MonkeyPatch) -> SuperLink:
    made = SuperLink()
    made.stand_in(monkeypatch)
    return made


def _deployment(root: Path) -> Deployment:
    made = Deployment(root=root, hosts=("localhost",))
    init_folder(made, ["anna", "ben"], make_keys=True)
    return made


@pytest.fixture
def deployment(tmp_path: Path, superlink: SuperLink) -> Deployment:
    made = _deployment(tmp_path / "deployment")
    superlink.register("by hand")  # a node that is no device, from before
    superlink.steps = 0
    return made


def _key(deployment: Deployment, name: str = "anna") -> str:
    return deployment.device(name).public_key


def _cut_off(superlink: SuperLink, at: int, command: Callable[..., object], *arguments: object) -> bool:
    """Run a command that is killed at a step; return whether it came so far."""
    superlink.steps, superlink.dies_at = 0, at
    try:
        command(*arguments)
    except Killed:
        return True
    finally:
        superlink.dies_at = -1
    return False


def _lose_the_answer(superlink: SuperLink, deployment: Deployment, name: str = "anna") -> str:
    """Cut a registration off where SuperLink has made the node, and nothing here knows of it; return the node."""
    before = set(superlink.nodes)
    superlink.answer_is_lost = True
    with pytest.raises(Killed):
        register_device(deployment, name)
    superlink.answer_is_lost = False
    (node_id,) = set(superlink.nodes) - before
    return node_id


def _nothing(superlink: SuperLink, deployment: Deployment) -> None:
    pass


def _database_deleted(superlink: SuperLink, deployment: Deployment) -> None:
    superlink.nodes.clear()


def _other_device(superlink: SuperLink, deployment: Deployment) -> None:
    register_device(deployment, "ben")


def _other_device_that_was_revoked(superlink: SuperLink, deployment: Deployment) -> None:
    register_device(deployment, "ben")
    revoke(deployment, "ben")


def _ended_by_hand(superlink: SuperLink, deployment: Deployment) -> None:
    for node_id, (key, state) in list(superlink.nodes.items()):
        if key == _key(deployment) and state != "unregistered":
            superlink.unregister(node_id)


@pytest.mark.parametrize("meanwhile", [_nothing, _database_deleted, _other_device, _other_device_that_was_revoked])
def test_enroll_completes_a_registration_that_was_cut_off_anywhere(
    superlink: SuperLink, deployment: Deployment, meanwhile: Change
) -> None:
    text = deployment.devices_file.read_bytes()
    for at in range(1, MOST_STEPS):
        superlink.nodes.clear()
        superlink.register("by hand")
        deployment.devices_file.write_bytes(text)
        came_so_far = _cut_off(superlink, at, register_device, deployment, "anna")
        meanwhile(superlink, deployment)

        enroll(deployment, "anna")

        device = deployment.device("anna")
        assert superlink.nodes[device.node_id] == (device.public_key, "registered"), at
        assert device.nodes_before is None and not device.waits
        if not came_so_far:
            break
    assert 8 < at < MOST_STEPS - 1  # list, write of both files, register, write of both files


@pytest.mark.parametrize(
    "meanwhile",
    [_nothing, _database_deleted, _other_device, _other_device_that_was_revoked, _ended_by_hand],
)
@pytest.mark.parametrize("command", [register_device, revoke])
@pytest.mark.parametrize("registered_before", [False, True])
def test_a_revoke_after_a_command_that_was_cut_off_anywhere_is_one(
    superlink: SuperLink,
    deployment: Deployment,
    command: Callable[..., object],
    registered_before: bool,
    meanwhile: Change,
) -> None:
    if registered_before:
        register_device(deployment, "anna")
    text, nodes = deployment.devices_file.read_bytes(), dict(superlink.nodes)
    for at in range(1, MOST_STEPS):
        superlink.nodes = dict(nodes)
        deployment.devices_file.write_bytes(text)
        came_so_far = _cut_off(superlink, at, command, deployment, "anna")
        meanwhile(superlink, deployment)

        if not deployment.device("anna").revoked:
            revoke(deployment, "anna")

        device = deployment.device("anna")
        assert device.revoked and (device.node_id, device.nodes_before) == ("", None)
        assert not superlink.accepts(device.public_key), at
        assert superlink.accepts("by hand") or meanwhile is _database_deleted
        if not came_so_far:
            break
    assert 4 < at < MOST_STEPS - 1


def test_what_superlink_listed_is_written_down_before_the_key_is_sent(
    superlink: SuperLink, deployment: Deployment
) -> None:
    _lose_the_answer(superlink, deployment)

    table = tomllib.loads(deployment.devices_file.read_text())["devices"]["anna"]
    assert table["nodes-before"] == ["7"]
    assert deployment.device("anna").waits
    register_device(deployment, "anna")
    table = tomllib.loads(deployment.devices_file.read_text())["devices"]["anna"]
    assert sorted(table) == ["client-id", "node-id", "public-key", "revoked"]


def test_revoke_after_the_database_was_lost_and_the_new_registration_cut_off(
    superlink: SuperLink, deployment: Deployment
) -> None:
    before = register_device(deployment, "anna").node_id
    superlink.nodes.clear()
    assert _lose_the_answer(superlink, deployment) != before == deployment.device("anna").node_id

    revoke(deployment, "anna")

    assert not superlink.accepts(_key(deployment))


def test_two_registrations_that_were_cut_off(superlink: SuperLink, deployment: Deployment) -> None:
    anna = _lose_the_answer(superlink, deployment)
    ben = _lose_the_answer(superlink, deployment, "ben")
    with pytest.raises(FlowerError, match=f"2 nodes have come .* expected 1; it may be {anna}, {ben}: find it with"):
        register_device(deployment, "anna")

    register_device(deployment, "ben")
    register_device(deployment, "anna")

    assert (deployment.device("anna").node_id, deployment.device("ben").node_id) == (anna, ben)


@pytest.mark.parametrize("command", [register_device, revoke])
def test_a_node_by_hand_since_then_is_not_taken_for_the_devices(
    superlink: SuperLink, deployment: Deployment, command: Callable[..., object]
) -> None:
    node_id = _lose_the_answer(superlink, deployment)
    other = superlink.register("by hand, too")

    with pytest.raises(FlowerError, match=f"it may be {node_id}, {other}: .* flwr supernode list deployment"):
        command(deployment, "anna")

    assert not deployment.device("anna").revoked
    assert superlink.accepts("by hand, too")
    _write_by_hand(deployment, node_id)
    command(deployment, "anna")
    assert superlink.accepts(_key(deployment)) == (command is register_device)
    assert superlink.accepts("by hand, too")


def _write_by_hand(deployment: Deployment, node_id: str) -> None:
    """Do what the error asks for."""
    with deployment.change_devices() as devices:
        devices["anna"].node_id = node_id


@pytest.mark.parametrize("command", [register_device, revoke])
def test_a_key_that_was_registered_by_hand_is_refused(
    superlink: SuperLink, deployment: Deployment, command: Callable[..., object]
) -> None:
    node_id = superlink.register(_key(deployment))

    with pytest.raises(FlowerError, match=f"but 0 nodes have come .* it may be 7, {node_id}: find it"):
        command(deployment, "anna")

    superlink.register("by hand, too")  # is not taken for what the refused registration made
    with pytest.raises(FlowerError, match="but 0 nodes have come"):
        command(deployment, "anna")
    assert not deployment.device("anna").revoked
    _write_by_hand(deployment, node_id)
    revoke(deployment, "anna")
    assert not superlink.accepts(_key(deployment))


def test_a_key_that_ended_by_hand_is_revoked_where_no_other_node_is_left(
    superlink: SuperLink, deployment: Deployment
) -> None:
    superlink.unregister(superlink.register(_key(deployment)))
    with pytest.raises(FlowerError, match="it may be 7: find it"):
        revoke(deployment, "anna")
    superlink.unregister("7")

    with pytest.raises(FlowerError, match="revoke anna and enroll it with a new key"):
        register_device(deployment, "anna")
    revoke(deployment, "anna")

    assert deployment.device("anna").revoked


def test_an_older_file_with_a_registration_that_was_cut_off(superlink: SuperLink, deployment: Deployment) -> None:
    superlink.register(_key(deployment))  # by a version that wrote nothing down before
    assert b"nodes-before" not in deployment.devices_file.read_bytes()

    for command in (register_device, revoke):
        with pytest.raises(FlowerError, match="it may be 7, 8: find it"):
            command(deployment, "anna")
    _write_by_hand(deployment, "8")
    register_device(deployment, "anna")

    assert deployment.device("anna").node_id == "8"


@pytest.mark.parametrize("registered", [False, True])
def test_revoke_without_superlink_is_none(superlink: SuperLink, deployment: Deployment, registered: bool) -> None:
    if registered:
        register_device(deployment, "anna")
    superlink.reachable = False

    with pytest.raises(FlowerError, match="cannot be reached"):
        revoke(deployment, "anna")

    assert not deployment.device("anna").revoked
    assert (deployment.device_folder_of("anna") / "node.key").exists()


def test_a_device_without_a_key_is_revoked_without_superlink(superlink: SuperLink, tmp_path: Path) -> None:
    made = Deployment(root=tmp_path / "other", hosts=("localhost",))
    init_folder(made, ["cleo"])
    superlink.reachable = False

    assert revoke(made, "cleo").revoked


class Operators(RuleBasedStateMachine):
    """Any order of commands, killed anywhere, of nodes by hand, and of losses of SuperLink's database."""

    NAMES = st.sampled_from(["anna", "ben"])

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.folder = pytest.MonkeyPatch(), tempfile.TemporaryDirectory()
        self.superlink = SuperLink()
        self.superlink.stand_in(self.patch)
        self.deployment = _deployment(Path(self.folder.name) / "deployment")
        self.revoked: list[str] = []
        self.by_hand = 0

    def teardown(self) -> None:
        self.patch.undo()
        self.folder.cleanup()

    @rule(name=NAMES, at=st.integers(1, 16))
    def enrolls(self, name: str, at: int) -> None:
        """Register a device that is not revoked."""
        with suppress(FlowerError, ConfigError):
            _cut_off(self.superlink, at, register_device, self.deployment, name)

    @rule(name=NAMES, at=st.integers(1, 20))
    def revokes(self, name: str, at: int) -> None:
        """Revoke a device, and enroll its name with a new key."""
        key = _key(self.deployment, name)
        try:
            if _cut_off(self.superlink, at, revoke, self.deployment, name):
                return
        except FlowerError:
            return
        except ConfigError:
            pass  # revoked by a command that was killed just after
        self.revoked.append(key)
        with suppress(FlowerError):
            enroll(self.deployment, name, make_key=True)

    @rule()
    def registers_by_hand(self) -> None:
        """Register a key that is no device's."""
        self.by_hand += 1
        self.superlink.register(f"by hand {self.by_hand}")

    @rule(pick=st.integers(0, 20))
    def unregisters_by_hand(self, pick: int) -> None:
        """End any node."""
        active = [node_id for node_id, (_, state) in self.superlink.nodes.items() if state != "unregistered"]
        if active:
            self.superlink.unregister(active[pick % len(active)])

    @rule()
    def deletes_the_database(self) -> None:
        """Start SuperLink anew without its database."""
        self.superlink.nodes.clear()

    @invariant()
    def no_revoked_key_connects(self) -> None:
        """A device that is shown as revoked cannot connect."""
        assert not any(map(self.superlink.accepts, self.revoked))

    @invariant()
    def a_recorded_node_is_the_devices(self) -> None:
        """A recorded id that SuperLink knows has the device's key."""
        for device in self.deployment.devices().values():
            if device.node_id in self.superlink.nodes:
                assert self.superlink.nodes[device.node_id][0] == device.public_key


TestOperators = Operators.TestCase
TestOperators.settings = settings(
    max_examples=40, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
