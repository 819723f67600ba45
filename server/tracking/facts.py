"""Description of a run for trackers: settings, software, base model and data."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from server.rounds.federation import Federation
from server.tracking.tracker import RunFacts
from zo_common.adapters.hub import known_revision
from zo_common.speech.recordings import Recordings

_PACKAGE = "federated-zo-asr"


def facts_of(federation: Federation, held_out: Recordings | None) -> RunFacts:
    """Return the description of a run.

    Args:
        held_out: the server's held-out speech; None without any.
    """
    config, members = federation.config, federation.members.values()
    facts: dict[str, Any] = {
        "version": _version(),
        "base-checksum": f"{federation.ledger.ledger.header.base_checksum:016x}",
        "base-revision": known_revision(config.model) or "unknown",
        "devices": len(members),
        "train-utterances": sum(member.num_examples for member in members),
        "held-out-utterances": 0 if held_out is None else len(held_out),
    }
    return RunFacts(Path(config.output), config.to_mapping(), facts, federation.last_round, federation.resumed)


def _version() -> str:
    try:
        return version(_PACKAGE)
    except PackageNotFoundError:  # as an app that Flower unpacked
        return "unknown"
