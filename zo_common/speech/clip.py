"""A part of a recording, by its times, cut at its use."""

from __future__ import annotations

import io
from dataclasses import dataclass, field

import soundfile

from zo_common.speech.audio import AudioProblem, as_audio_problem, name_of, opened
from zo_common.speech.utterance import Source

OVERSHOOT = 0.5  # seconds that a part may end after its recording, as in Kaldi: times are rounded
_WHOLE = 0.05  # seconds by which a part may differ from the recording and still count as the whole


@dataclass(frozen=True)
class Clip:
    """Samples from `start` on, for `seconds` or up to the end; a call returns them as the bytes of a WAV file.

    The samples are those of the recording, to the bit, at its own rate and with all its channels; for a part that is
    the whole recording, the recording itself is returned.
    """

    source: Source = field(repr=False)
    start: float
    seconds: float | None

    def __call__(self) -> bytes:
        """Return the part as bytes.

        Raises:
            AudioProblem: the recording cannot be read, is cut short, or ends before the part.
        """
        source = self.source() if callable(self.source) else self.source
        name = name_of(source)
        with as_audio_problem(name), opened(source, name) as file:
            total = file.frames / file.samplerate
            seconds = total - self.start if self.seconds is None else self.seconds
            if self.start == 0 and abs(seconds - total) <= _WHOLE:
                return source if isinstance(source, bytes) else source.read_bytes()
            if self.start >= total or self.start + seconds > total + OVERSHOOT:
                raise AudioProblem(
                    f"{name} lasts {total:.2f} s, expected it to reach to {self.start + seconds:.2f} s, where the "
                    "part ends: correct its times."
                )
            file.seek(round(self.start * file.samplerate))
            samples = file.read(round(seconds * file.samplerate), dtype="float32", always_2d=True)
            target = io.BytesIO()
            soundfile.write(target, samples, file.samplerate, format="WAV", subtype="FLOAT")
        return target.getvalue()
