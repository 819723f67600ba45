"""Back-off: whoever lets the others wait, or fails, three times in a row is asked less and less."""

from __future__ import annotations

PATIENCE = 3  # times in a row before some are skipped
WAITED_FOR = frozenset({"client-busy", "catching-up"})  # no fault, but it may be waited for to the end
MOST_SKIPPED_WAITING = 8


def skipped(times: int, most: int) -> int:
    """Return how many times to skip it after so many in a row: 0, and from the third on 1, 2, 4 … `most`.

    Args:
        most: a power of two.
    """
    # `times` may be read from a file, and be any number: bound the shift
    return 0 if times < PATIENCE else 1 << min(times - PATIENCE, most.bit_length() - 1)
