"""Kaldi's data folders: `wav.scp`, `text`, and optionally `segments` and `utt2spk`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from zo_common.speech.audio import stated_audio
from zo_common.speech.layouts.layout import TRANSCRIPTION, Listing, Row, short_name, text_of
from zo_common.speech.layouts.rows import seconds_of
from zo_common.speech.utterance import Source

NAME = "Kaldi"
_FILES = ("wav.scp", "text", "segments", "utt2spk")
_ABOVE = 4  # recipes name recordings from their own folder, such as egs/x/s5 for its data/train


@dataclass(frozen=True)
class _Entry:
    line: int
    value: str


def splits(folder: Path) -> dict[str, Path]:
    """As `Layout.splits`."""
    return {"": folder} if (folder / "wav.scp").is_file() else {}


def tables(place: Path) -> Iterable[Path]:
    """As `Layout.tables`."""
    return [path for name in _FILES if (path := place / name).is_file()]


def read(place: Path) -> Listing:
    """As `Layout.read`. Recordings from commands are refused: no command of a table is run."""
    problems: list[str] = []
    read_in = {name: _entries(place / name, problems) for name in _FILES}
    scp, texts, segments, speakers = (read_in[name] for name in _FILES)
    recordings = {utterance: _recording(place, entry.value) for utterance, entry in scp.items()}
    given = (place / "segments").is_file()
    rows: list[Row | str] = list(problems)
    rows += _segments(place, segments, recordings) if given else _whole(place, scp, recordings)
    listed = segments if given else scp
    done = [_filled(row, texts, speakers) if isinstance(row, Row) else row for row in rows]
    name = short_name(place / "text")
    done += [
        f"{name}:{entry.line}: got utterance '{utterance}', expected one of {'segments' if given else 'wav.scp'}: "
        "list it there or delete the line."
        for utterance, entry in texts.items()
        if utterance not in listed
    ]
    columns = ("utterance", *([TRANSCRIPTION] if texts else []), *(["speaker"] if speakers else []))
    no_text = f"{name} is not there or empty, expected the utterances' texts: write it beside wav.scp."
    return Listing(short_name(place / "wav.scp"), columns, tuple(done), no_text="" if texts else no_text)


def _entries(path: Path, problems: list[str]) -> dict[str, _Entry]:
    """Map the first word of each line to the rest; empty if there is no file."""
    found: dict[str, _Entry] = {}
    for number, line in enumerate(text_of(path).split("\n") if path.is_file() else [], 1):
        if line.strip():
            key, _, value = line.strip().replace("\t", " ", 1).partition(" ")
            if key in found:
                problems.append(
                    f"{short_name(path)}:{number}: got '{key}' a second time, expected it once: delete a line."
                )
            else:
                found[key] = _Entry(number, value.strip())
    return found


def _recording(place: Path, value: str) -> Source | str:
    if value.endswith("|") or value.startswith("|"):
        return f"got a command ('{value[:60]}'), expected the path of a recording: run it once and list what it writes."
    above = [place, *place.resolve().parents[:_ABOVE]]
    return stated_audio(above, value, column="recording")


def _whole(place: Path, scp: dict[str, _Entry], recordings: dict[str, Source | str]) -> Iterator[Row]:
    name = short_name(place / "wav.scp")
    for utterance, entry in scp.items():
        yield Row(f"{name}:{entry.line}", recordings[utterance], {"utterance": utterance})


def _segments(place: Path, segments: dict[str, _Entry], recordings: dict[str, Source | str]) -> Iterator[Row | str]:
    """Yield rows of utterance, recording, start and end in seconds; an end of −1 is that of the recording."""
    name = short_name(place / "segments")
    for utterance, entry in segments.items():
        where = f"{name}:{entry.line}"
        words = entry.value.split()
        if len(words) not in (3, 4):
            yield f"{where}: got {len(words) + 1} fields, expected utterance, recording, start and end: correct it."
            continue
        recording, start, end = words[0], seconds_of(words[1], "start"), seconds_of(words[2], "end")
        if _is_the_end(words[2]):
            end = None
        fields = {"utterance": utterance}
        missing = f"got recording '{recording}', expected one of wav.scp: list it."
        audio: Source | str = recordings.get(recording, missing)
        if isinstance(start, str) or start is None or isinstance(end, str):
            audio = next(str(fault) for fault in (start, end) if isinstance(fault, str))
            yield Row(where, audio, fields)
        elif end is not None and end <= start:
            yield Row(where, f"got an end of {end:g} s after a start of {start:g} s: correct the times.", fields)
        else:
            yield Row(where, audio, fields, start, None if end is None else end - start)


def _is_the_end(word: str) -> bool:
    """Return whether a time means the end of the recording."""
    try:
        return float(word) == -1
    except ValueError:
        return False


def _filled(row: Row, texts: dict[str, _Entry], speakers: dict[str, _Entry]) -> Row:
    """Add transcript and speaker, if they are known."""
    utterance = row.fields["utterance"]
    known = {TRANSCRIPTION: texts.get(utterance), "speaker": speakers.get(utterance)}
    fields = {"utterance": utterance} | {name: entry.value for name, entry in known.items() if entry is not None}
    return Row(row.where, row.audio, fields, row.start, row.seconds)
