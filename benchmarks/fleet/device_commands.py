"""The commands of a deployment's device on this machine, from its folder there, as its scripts start it elsewhere."""

from __future__ import annotations

from pathlib import Path

from server.deploy.deployment import Deployment


def node_config(deployment: Deployment, name: str, socket: str) -> str:
    """Return what a device's SuperNode tells the client app; `socket` is the worker's `unix:…` address."""
    client_id = deployment.device(name).client_id
    return f'client-id={client_id} device-name="{name}" worker-address="{socket}"'


def supernode_command(deployment: Deployment, name: str, *, socket: str, superlink: str = "") -> list[str]:
    """Return the device's SuperNode; `superlink` is another address than the deployment's port on this machine."""
    folder, port = deployment.device_folder_of(name), deployment.device_port + deployment.device(name).client_id
    return [
        f"{deployment.bin}/flower-supernode",
        "--root-certificates", str(folder / "ca.crt"), "--superlink", superlink or f"127.0.0.1:{deployment.port}",
        "--auth-supernode-private-key", str(folder / "node.key"),
        "--port", str(port), "--node-config", node_config(deployment, name, socket),
    ]  # fmt: skip


def worker_command(
    deployment: Deployment, name: str, *, socket: str, state: Path, model: Path, data: Path
) -> list[str]:
    """Return the device's resident worker."""
    key = deployment.device_folder_of(name) / "node.key"
    return [
        f"{deployment.bin}/zo-asr", "worker",
        "--model", str(model), "--data", str(data), "--listen", socket, "--state", str(state),
        "--node-key", str(key),
    ]  # fmt: skip
