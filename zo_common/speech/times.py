"""Cuts of long recordings by the times of their words or segments, in the pauses between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zo_common.speech.audio import MAX_SECONDS

LISTS = ("segments", "words")
"""Columns of `{"start": s, "end": s, "text" or "word": ...}`, as in Whisper's own JSON; the first is used."""
_LATEST = 1e7  # seconds, four months
_AROUND = 0.5  # seconds of a pause that are kept with the speech on either side of it


@dataclass(frozen=True)
class Part:
    """A part of a recording's speech: start and end in seconds, and its text."""

    start: float
    end: float
    text: str


def timed_parts(fields: Mapping[str, Any]) -> list[Part] | str | None:
    """Return the parts of a long recording's row, the fault of its times, or None if it needs no cuts.

    A recording whose last word ends within `MAX_SECONDS` stays whole.
    """
    name = next((name for name in LISTS if isinstance(fields.get(name), list) and fields[name]), None)
    if name is None:
        return None
    spoken: list[Part] = []
    for item in fields[name]:
        part = _part(item)
        if part is None or (spoken and part.start < spoken[-1].start):
            return (
                f"got {str(item)[:60]} in {name}, expected start and end in seconds, in order, and a text: correct it."
            )
        spoken.append(part)
    if spoken[-1].end <= MAX_SECONDS:
        return None
    longest = max(spoken, key=lambda part: part.end - part.start)
    if longest.end - longest.start > MAX_SECONDS:
        return (
            f"got a part of {longest.end - longest.start:.1f} s at {longest.start:.1f} s in {name}, expected at most "
            f"{MAX_SECONDS:g}: give the times of its words."
        )
    return cut_at_pauses(spoken)


def _part(item: Any) -> Part | None:
    if not isinstance(item, dict):
        return None
    start: Any = item.get("start")
    end: Any = item.get("end")
    text = item.get("text", item.get("word"))
    if type(start) not in (int, float) or type(end) not in (int, float) or not isinstance(text, str):
        return None
    # an integer may have more digits than a float holds
    return Part(float(start), float(end), text) if 0 <= start < end < _LATEST else None


def cut_at_pauses(spoken: Sequence[Part]) -> list[Part]:
    """Cut speech into groups of at most `MAX_SECONDS` at the longest pause, of equal ones at the most central."""
    pending, groups = [list(spoken)], []
    while pending:
        group = pending.pop()
        if group[-1].end - group[0].start <= MAX_SECONDS:
            groups.append(group)
            continue
        middle = (group[0].start + group[-1].end) / 2
        cut = max(
            range(1, len(group)), key=lambda at: (group[at].start - group[at - 1].end, -abs(group[at].start - middle))
        )
        pending += [group[cut:], group[:cut]]
    return [_joined(groups, at) for at in range(len(groups))]


def _joined(groups: Sequence[Sequence[Part]], at: int) -> Part:
    """Join a group to one part, with half of the pauses around it as far as there is room."""
    group = groups[at]
    before = groups[at - 1][-1].end if at else 0.0
    after = groups[at + 1][0].start if at + 1 < len(groups) else group[-1].end
    first, last = group[0].start, group[-1].end
    room = (MAX_SECONDS - (last - first)) / 2
    start = first - max(0.0, min(_AROUND, room, (first - before) / (2 if at else 1)))
    end = last + max(0.0, min(_AROUND, room, (after - last) / 2))
    return Part(start, end, " ".join(text for part in group if (text := part.text.strip())))
