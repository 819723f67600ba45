"""Segmentation of long recordings at pauses, each piece with its part of the transcript, by a model's alignment.

1. The recording is cut at its longest pauses into pieces of at most 30 s.
2. The model transcribes each piece, and its transcript is aligned with the text: words that are equal in both surely
   belong to their piece (as in Moreno et al. 1998, "A recursive algorithm for the forced alignment of very long
   audio segments").
3. Between the last sure word of a piece and the first of the next, and one word to either side, the cut is where the
   sum of the two texts' losses is minimal, if it is 19 times as likely as all other cuts together.

A piece with an uncertain end, or whose transcript differs too much from its text, is left out and reported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zo_common.speech.audio import MAX_SECONDS, AudioProblem, decode
from zo_common.speech.clip import Clip
from zo_common.speech.matching import Words, agreement, sure_spans
from zo_common.speech.pauses import spoken_parts
from zo_common.speech.speech_model import SpeechModel, WaveReader
from zo_common.speech.times import Part, cut_at_pauses
from zo_common.speech.utterance import LeftOut, Manifest, Utterance

LONGEST_SECONDS = 4 * 3600.0  # a gigabyte of samples
LEAST_AGREEMENT = 0.5
LEAST_PROBABILITY = 0.95  # of a cut, among the possible ones
MOST_CUTS = 24  # possible cuts between two pieces


@dataclass(frozen=True)
class Piece:
    """A piece of a long recording: its utterance, with its part of the text, and all its faults."""

    utterance: Utterance
    faults: tuple[str, ...]


class Segmenter:
    """Segmentation of the recordings of a manifest.

    Args:
        speech: the model, whose transcripts and losses determine the cuts.
        language: of the speech, as `language` of a run.
    """

    def __init__(self, speech: SpeechModel, language: str = "en") -> None:
        self._speech, self._language = speech, language
        self._reader: WaveReader = speech.reader(language=language)
        self._device = next(speech.model.parameters()).device

    def segment(
        self, manifest: Manifest, on_progress: Callable[[int, int], None] = lambda done, total: None
    ) -> Manifest:
        """Return a manifest of pieces of at most 30 s; pieces that cannot be aligned are left out.

        Its columns are those of the source, with `source`, the recording's name, and `start` and `end` in seconds.
        """
        utterances: list[Utterance] = []
        left_out = list(manifest.left_out)
        for done, utterance in enumerate(manifest.utterances, 1):
            try:
                pieces = self.pieces(utterance)
            except AudioProblem as problem:
                left_out.append(LeftOut((f"{utterance.where}: {problem}",), utterance.columns))
            else:
                for piece in pieces:
                    where, columns = piece.utterance.where, piece.utterance.columns
                    if piece.faults:
                        left_out.append(LeftOut(tuple(f"{where}: {fault}" for fault in piece.faults), columns))
                    else:
                        utterances.append(piece.utterance)
            on_progress(done, len(manifest.utterances))
        return Manifest(tuple(utterances), manifest.faults, tuple(left_out))

    @torch.inference_mode()
    def pieces(self, utterance: Utterance) -> list[Piece]:
        """Return the pieces of one recording, in order; a recording of at most 30 s is one piece.

        Raises:
            AudioProblem: the recording cannot be used.
        """
        rate = self._speech.rate
        wave = decode(utterance.audio, rate, LONGEST_SECONDS, shorten="cut it into hours")
        seconds = len(wave) / rate
        if seconds <= MAX_SECONDS:
            return [Piece(replace(utterance, columns=_placed(utterance, 0.0, seconds)), ())]
        parts = _pieces_of(spoken_parts(wave, rate))
        blank = [_blank(utterance, part) for part in parts]
        transcribed = self._transcripts(wave, parts)
        reference = Words(utterance.text, self._language)
        spoken = [number for number, words in enumerate(transcribed) if words.tokens]
        spans = sure_spans(reference, [transcribed[number].tokens for number in spoken])
        bounds = self._bounds(reference, spoken, spans, blank)
        edges = dict(zip(spoken, zip(bounds[:-1], bounds[1:], strict=True), strict=True))
        return [self._judged(each, transcribed[n], reference, edges.get(n)) for n, each in enumerate(blank)]

    def _transcripts(self, wave: NDArray[np.float32], parts: list[Part]) -> list[Words]:
        """Return the model's transcript of each part; an empty one for a part that is too long."""
        rate = self._speech.rate
        found = []
        for part in parts:
            piece = wave[int(part.start * rate) : int(part.end * rate)]
            if part.end - part.start > MAX_SECONDS or len(piece) < self._speech.least:
                found.append(Words("", self._language))
                continue
            (transcribed,) = self._speech.transcribe([self._reader.of_wave(piece)], language=self._language)
            found.append(Words(transcribed.text, self._language))
        return found

    def _bounds(
        self, reference: Words, spoken: list[int], spans: list[tuple[int, int] | None], pieces: list[Utterance]
    ) -> list[int | None]:
        """Return where the text of each piece begins, in units, and where the last one ends; None if uncertain.

        Args:
            spoken: numbers of the pieces with a transcript, whose texts these are. Words next to another piece may
                belong to that one, so there must be no uncertain word between them.
            spans: the units that surely belong to each of `spoken`.
        """
        if not spoken:
            return [None]
        first, last = spans[0], spans[-1]
        bounds: list[int | None] = [0 if not spoken[0] or (first and not first[0]) else None]
        for number in range(1, len(spoken)):
            left, right = spans[number - 1], spans[number]
            most = MOST_CUTS if spoken[number] == spoken[number - 1] + 1 else 0
            if left is None or right is None or right[0] - left[1] > most:
                bounds.append(None)
                continue
            start = left[0] if bounds[-1] is None else bounds[-1]
            end = right[1] if number + 1 < len(spoken) else len(reference)
            places = range(max(start, left[1] - 2) + 1, min(end, right[0] + 2))
            sides = pieces[spoken[number - 1]], pieces[spoken[number]]
            bounds.append(self._likeliest(reference, start, end, places, *sides))
        whole = spoken[-1] == len(pieces) - 1 or (last and last[1] == len(reference))
        return [*bounds, len(reference) if whole else None]

    def _likeliest(
        self, reference: Words, first: int, last: int, places: Sequence[int], left: Utterance, right: Utterance
    ) -> int | None:
        """Return the most likely cut by the losses of the texts on both sides; None if several are about as likely."""
        nats = np.array(
            [self._nats(left, reference.text(first, at)) + self._nats(right, reference.text(at, last)) for at in places]
        )
        if not len(nats) or not math.isfinite(best := float(nats.min())):
            return None
        share = 1 / np.exp(best - nats).sum()
        return places[int(nats.argmin())] if share >= LEAST_PROBABILITY else None

    def _nats(self, piece: Utterance, text: str) -> float:
        """Return minus the log likelihood of a text; infinite if the model cannot encode it."""
        example: Any = self._reader.example(replace(piece, text=text))
        if isinstance(example, list) or not example.labels:
            return math.inf
        batch = self._reader.recordings((example,), ()).batch([0]).to(self._device)
        counted = len(example.labels) + (self._speech.unit == "token")  # with the end of the text
        return float(self._speech.held_out_losses(batch)[0]) * counted

    def _judged(
        self, piece: Utterance, transcribed: Words, reference: Words, edges: tuple[int | None, int | None] | None
    ) -> Piece:
        seconds = float(piece.columns["end"]) - float(piece.columns["start"])
        if seconds > MAX_SECONDS:
            return Piece(piece, (f"got {seconds:.1f} s of speech without a pause, expected one: cut it by hand.",))
        if edges is None:
            return Piece(
                piece, (f"got nothing that the model hears in these {seconds:.1f} s, expected speech: listen.",)
            )
        start, end = edges
        if start is None or end is None:
            which = "begins and ends" if start == end else "begins" if start is None else "ends"
            fault = (
                f"got no words that say where the text of these {seconds:.1f} s {which}, expected some: cut it by hand."
            )
            return Piece(piece, (fault,))
        text = reference.text(start, end)
        share = agreement(Words(text, self._language).tokens, transcribed.tokens)
        if share < LEAST_AGREEMENT:
            fault = f"got {share:.0%} of the text's words where the model listens, expected {LEAST_AGREEMENT:.0%} and "
            return Piece(piece, (f"{fault}more: check that they belong together, or take another model.",))
        return Piece(replace(piece, text=text), ())


def _pieces_of(spoken: list[Part]) -> list[Part]:
    """Join speech to parts of at most 30 s; longer speech without a pause is a part of its own."""
    found: list[Part] = []
    pending: list[Part] = []
    for part in (*spoken, None):
        if part is not None and part.end - part.start <= MAX_SECONDS:
            pending.append(part)
            continue
        found += cut_at_pauses(pending) if pending else []
        pending = []
        if part is not None:
            found.append(part)
    return found


def _blank(source: Utterance, part: Part) -> Utterance:
    """Return a part of a recording, without a text."""
    clip = Clip(source.source, part.start, part.end - part.start)
    return Utterance(f"{source.where} at {part.start:.2f} s", clip, "", _placed(source, part.start, part.end))


def _placed(utterance: Utterance, start: float, end: float) -> dict[str, str]:
    """Return a recording's columns and where a piece of it is, in the file, where there is one."""
    whole = utterance.source
    offset = whole.start if isinstance(whole, Clip) else 0.0
    source = whole.source if isinstance(whole, Clip) else whole
    name = source.name if isinstance(source, Path) else utterance.where
    return {**utterance.columns, "source": name, "start": f"{offset + start:.2f}", "end": f"{offset + end:.2f}"}
