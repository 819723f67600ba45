"""Weights of the devices in a sum, of which none may be so heavy that the sum shows its vector."""

from __future__ import annotations

from collections.abc import Mapping


def capped(claimed: Mapping[int, int], least: int, most: int) -> dict[int, int]:
    """Return weights of which none is over half of any sum of `least` devices, and that together are at most `most`.

    Devices refuse a sum that is nearly all one device's, and one that could overflow. A claim of any size is therefore
    cut to the sum of the lightest `least − 1` others, so that the round stays possible whoever drops out.

    Args:
        claimed: what each device says it has, from 1.
        least: number of devices in the smallest sum that is opened, from 2.
    """
    if not claimed:
        return {}
    lightest = sorted(claimed.values())[: max(1, least - 1)]
    cap = max(1, min(sum(lightest), most // len(claimed)))
    return {client: min(weight, cap) for client, weight in claimed.items()}
