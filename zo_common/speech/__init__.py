"""Speech with and without transcripts: reading, partitions, batches and evaluation."""

from typing import TYPE_CHECKING

from zo_common.lazy import lazy_names

if TYPE_CHECKING:
    from zo_common.speech.manifest import read_manifest
    from zo_common.speech.metrics import Scores, score
    from zo_common.speech.reading import read_speech
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "Scores": "zo_common.speech.metrics",
            "read_manifest": "zo_common.speech.manifest",
            "read_speech": "zo_common.speech.reading",
            "score": "zo_common.speech.metrics",
        },
    )

__all__ = [
    "Scores",
    "read_manifest",
    "read_speech",
    "score",
]
