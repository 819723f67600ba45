"""Which device a node config names."""

from __future__ import annotations

from typing import Any

import pytest

from client.place import Place, place_of


@pytest.mark.parametrize(
    ("node", "place"),
    [
        ({}, Place(13773073425553841337)),
        ({"client-id": 4}, Place(4)),
        ({"partition-id": 2, "num-partitions": 5}, Place(2, 2, 5)),
        ({"partition-id": 2, "num-partitions": 5, "client-id": 4}, Place(4, 2, 5)),
        ({"partition-id": 2, "num-partitions": 5, "own-data": True}, Place(2)),
        ({"partition-id": 2}, Place(2)),
    ],
)
def test_id_and_partition(node: dict[str, Any], place: Place) -> None:
    assert place_of(node, 99) == place
