"""Bytes of messages, counted in two ways."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class ByteCounts:
    """Bytes of one direction: our packed payload, and Flower's serialised message content around it."""

    payload: int = 0
    serialised: int = 0

    def add(self, payload: int, serialised: int) -> None:
        """Count one message."""
        self.payload += payload
        self.serialised += serialised


@dataclass
class Traffic:
    """Bytes down and up; `by_node` has the payload of each node, [down, up]."""

    down: ByteCounts = field(default_factory=ByteCounts)
    up: ByteCounts = field(default_factory=ByteCounts)
    by_node: dict[int, list[int]] = field(default_factory=dict)

    def sent(self, node: int, payload: int, serialised: int) -> None:
        """Count one message to a node."""
        self.down.add(payload, serialised)
        self.by_node.setdefault(node, [0, 0])[0] += payload

    def received(self, node: int, payload: int, serialised: int) -> None:
        """Count one message from a node."""
        self.up.add(payload, serialised)
        self.by_node.setdefault(node, [0, 0])[1] += payload

    def include(self, other: Traffic) -> None:
        """Count all of another's messages, too."""
        self.down.add(other.down.payload, other.down.serialised)
        self.up.add(other.up.payload, other.up.serialised)
        for node, (down, up) in other.by_node.items():
            found = self.by_node.setdefault(node, [0, 0])
            found[0] += down
            found[1] += up
