"""Pieces of audio: their transcripts, and the objective that adapts to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from zo_common.errors import ConfigError
from zo_common.estimator.step import LossFn, joined
from zo_common.speech.loss_settings import LossSettings
from zo_common.speech.speech_model import SpeechModel, Transcript, Wave, WaveReader

FORWARD_SECONDS = 60.0  # of audio in one forward pass, padding included
_DECODED_AT_ONCE = 8


def objective_of(speech: SpeechModel, asked: str) -> str:
    """Return the requested objective of adaptation; "" is the default of the kind of model.

    Raises:
        ConfigError: this kind of model has no such objective, or none at all.
    """
    known = speech.adapts_by
    if not known:
        raise ConfigError(
            f"a {speech.name} model cannot adapt without transcripts, expected a CTC model or Whisper: train it instead"
        )
    if asked and asked not in known:
        raise ConfigError(f"objective is {asked!r}, a {speech.name} model adapts by one of: {', '.join(known)}")
    return asked or known[0]


def listen(speech: SpeechModel, reader: WaveReader, pieces: Sequence[Wave], language: str) -> list[Transcript]:
    """Return greedy transcripts of pieces of audio."""
    found: list[Transcript] = []
    for start in range(0, len(pieces), _DECODED_AT_ONCE):
        examples = [reader.of_wave(piece) for piece in pieces[start : start + _DECODED_AT_ONCE]]
        found += speech.transcribe(examples, language=language)
    return found


def episode(
    speech: SpeechModel,
    reader: WaveReader,
    pieces: Sequence[tuple[Wave, Transcript]],
    trained: Sequence[str],
    settings: LossSettings,
    precision: str,
) -> Callable[[], LossFn]:
    """Return a maker of step losses on pieces of audio, at least one, with their transcripts."""
    device = next(speech.model.parameters()).device
    makers = []
    for group in groups(pieces, speech.rate, padded=not speech.hears_padding):
        data = reader.recordings(tuple(reader.of_wave(piece, transcript.tokens) for piece, transcript in group), ())
        batch = data.batch(range(len(group))).to(device)
        makers.append(speech.episode(batch, trained, settings, precision))
    return lambda: joined([make() for make in makers])


def groups(pieces: Sequence[tuple[Wave, Transcript]], rate: int, padded: bool) -> list[list[tuple[Wave, Transcript]]]:
    """Group neighbouring pieces into forward passes; of equal length only, unless the model ignores padding."""
    found: list[list[tuple[Wave, Transcript]]] = []
    for piece in pieces:
        last, size = found[-1] if found else [], len(piece[0])
        longest = max([size, *(len(wave) for wave, _ in last)])
        fits = (len(last) + 1) * longest <= FORWARD_SECONDS * rate
        if last and fits and (padded or len(last[0][0]) == size):
            last.append(piece)
        else:
            found.append([piece])
    return found
