"""Reasons for which answers of devices are refused, in words: the counts of a round have short codes."""

from __future__ import annotations

REASONS: dict[str, str] = {
    "bad-curvature": "the measured curvature is missing, not asked for, or no number",
    "behind": "the device lacks rounds, however often it gets them",
    "catching-up": "the device is fetching older rounds, longer than the round lasts",
    "client-busy": "the device is busy with another run",
    "client-checksum": "the device's weights are not the server's, though rebuilt",
    "client-error": "the device reports an error of its own",
    "client-non-finite": "the device computed a loss that is no number",
    "collapse": "the guard took the round back: transcripts collapsed",
    "device-error": "the device's program failed",
    "duplicate": "the device answered twice",
    "late": "the answer came after its round had closed",
    "malformed": "the bytes of the answer cannot be read",
    "no-answer": "the device did not answer in time",
    "no-examples": "the device claims no recordings, or too many",
    "no-majority": "the devices' checksums differ, and none has a majority",
    "non-finite": "a scalar or the loss is no number",
    "not-asked": "the device was not asked in this round",
    "one-bit": "the answer holds signs, and the run does not vote by signs",
    "out-of-range": "a scalar is too large, or the weights would leave the lattice",
    "secure-sum": "the device did not follow the secure sum",
    "too-few": "too few valid answers for a round: it stays empty",
    "unmasked": "the answer of a secure sum is not masked",
    "worse": "the guard took the round back: the held-out loss rose",
    "wrong-checksum": "the device trained on other weights than the server's",
    "wrong-client": "the answer names another device",
    "wrong-round": "the answer is for another round",
    "wrong-seed": "the answer has another seed",
    "wrong-shape": "the answer has another number of scalars",
}


def in_words(reason: str) -> str:
    """Return a reason in words; of a code that is not known here, the code itself."""
    return REASONS.get(reason.replace("_", "-"), reason)
