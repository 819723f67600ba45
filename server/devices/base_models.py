"""Base models as devices describe them: the expected one, and devices that hold another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from server.devices.roster import Member
from server.run.model import GlobalModel, View
from zo_common.errors import ConfigError
from zo_common.ledger.ledger import check_base, tensor_entry


def reference_view(global_model: GlobalModel | None, members: Iterable[Member]) -> View:
    """Return the expected base model: the server's or, without one, the one that most devices describe."""
    if global_model is not None:
        return global_model.fingerprint, global_model.base_checksum, global_model.tensors
    views = [view for view in _views(members).values() if view is not None]
    if not views:
        raise ConfigError("no device described its base model: update the older side")
    return Counter(views).most_common(1)[0][0]


def mismatched_devices(reference: View, members: Iterable[Member]) -> dict[int, str]:
    """Return node ids of devices whose base model is not `reference`, each with a message for the operator."""
    found = {}
    members = list(members)
    views = _views(members)
    for member in members:
        view = views[member.node_id]
        if view is None:
            found[member.node_id] = f"device {member.client_id} described its base model with malformed fields"
        elif view != reference:
            found[member.node_id] = (
                f"device {member.client_id} holds another base model or other trained tensors "
                f"({view[0][:16]}…, expected {reference[0][:16]}…): give it the same model"
            )
    return found


def _views(members: Iterable[Member]) -> dict[int, View | None]:
    members = list(members)
    # devices with equal descriptions share one object (see the roster), so a thousand of them are parsed once
    different = {id(m.description): _view(m.description) for m in members}
    return {m.node_id: different[id(m.description)] for m in members}


def _view(description: dict[str, Any]) -> View | None:
    try:
        tensors = tuple(tensor_entry(name, shape, grid, scale) for name, shape, grid, scale in description["tensors"])
        if not tensors:
            return None
        check_base(description["fingerprint"], description["base_checksum"])
        return description["fingerprint"], description["base_checksum"], tensors
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
        return None
