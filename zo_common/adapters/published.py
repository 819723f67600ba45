"""The files of a published adapter's repository: a description, the ledger, the run's result and a model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from zo_common.adapters.card import adapter_card
from zo_common.adapters.description import CARD_NAME, CONFIG_NAME, RESULT_NAME, AdapterConfig, describe
from zo_common.adapters.source import find_ledger
from zo_common.binary.durable import write_durably
from zo_common.config.run import SETTINGS
from zo_common.errors import ConfigError, ExportFailed, LedgerAltered
from zo_common.ledger.file import LEDGER_NAME, read_ledger
from zo_common.ledger.ledger import Ledger, LedgerHeader, encode_ledger
from zo_common.models.hub import is_hub_id
from zo_common.privacy.charges import LOG_NAME, PrivacyLog, most_spent

_EVALUATION = "evaluation.json"  # of a run in Python, which leaves no result.json
_PATHS = {each.key for each in SETTINGS if each.about.path}
# of a run's result; its other fields name files, devices and people
_PUBLIC = (
    "devices", "fingerprint", "trained_weights", "versions", "hardware", "before", "after", "verdict", "loss_unit",
    "checksum", "traffic", "ledger_bytes", "minutes",
)  # fmt: skip


@dataclass(frozen=True)
class Publication:
    """Information of the publisher on an adapter that is not in the files of its run.

    Attributes:
        base: hub id of the base; "" for the one that the ledger names.
        revision: commit of the base; "" if unknown.
        data: description of the training data.
        license: the hub's name of the license.
    """

    base: str = ""
    revision: str = ""
    data: str = ""
    license: str = ""


def write_adapter(run: Path, folder: Path, repository: str, publication: Publication) -> AdapterConfig:
    """Write a repository's files from a run's folder, or from a ledger alone, without names of files and people.

    The ledger's rounds and checksums are the run's; if its header names the base by a folder, that is replaced by
    `said.base`.

    Raises:
        ConfigError: the base has no hub id, or `folder` exists and is not empty.
        LedgerError: the run has no ledger, a damaged one, or one with privacy and no log of its spending.
        ExportFailed: the folder cannot be written.
    """
    source = find_ledger(run)
    ledger = read_ledger(source, tolerate_torn=False)
    base = publication.base or ledger.header.model
    if not is_hub_id(base):
        raise ConfigError(
            f"the base is {base!r}, a name on this machine, expected a hub id that others can load: give --base"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is not empty: name a new directory")
    header = replace(ledger.header, model=base, settings=_without_paths(ledger.header.settings))
    public = Ledger(header, ledger.records)
    config = describe(public, publication.revision)
    result = _public_result(source.parent)
    card = adapter_card(
        config, header, result, repository, publication.data, publication.license, privacy=_privacy(header, source)
    )
    contents = {
        CONFIG_NAME: (json.dumps(asdict(config), indent=2) + "\n").encode(),
        LEDGER_NAME: encode_ledger(public),
        RESULT_NAME: (json.dumps(result, indent=1) + "\n").encode(),
        CARD_NAME: card.encode(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            write_durably(folder / name, content)
    except OSError as error:
        raise ExportFailed(f"the adapter cannot be written to {folder} ({error.strerror}): name another") from None
    return config


def check_adapter(folder: Path) -> AdapterConfig:
    """Return the description of a downloaded adapter after checking its ledger against it.

    Raises:
        LedgerError: a file is missing or cannot be read, or the two differ.
    """
    ledger = read_ledger(find_ledger(folder), tolerate_torn=False)
    try:
        config = AdapterConfig(**json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise LedgerAltered(f"{folder / CONFIG_NAME} cannot be read ({error}): fetch the repository again") from None
    found = describe(ledger, "")
    for what in ("base_fingerprint", "checksum", "rounds", "trained_weights"):
        stated, held = getattr(config, what), getattr(found, what)
        if stated != held:
            raise LedgerAltered(
                f"{CONFIG_NAME} has {what} {stated!r}, the ledger beside it {held!r}: ask who published it"
            )
    return config


def _without_paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in _PATHS}


def _public_result(run: Path) -> dict[str, Any]:
    """Return a run's numbers; empty if there are none."""
    found: dict[str, Any] = {}
    for name in (_EVALUATION, RESULT_NAME):
        if (run / name).is_file():
            try:
                found |= json.loads((run / name).read_text(encoding="utf-8"))
            except (OSError, ValueError, TypeError) as error:
                raise ConfigError(f"{run / name} cannot be read ({error}): delete it, or restore it") from None
    public = {key: found[key] for key in _PUBLIC if key in found}
    if found.get("config"):
        public["config"] = _without_paths(found["config"])
    if found.get("comparison"):
        public["comparison"] = {key: value for key, value in found["comparison"].items() if key != "groups"}
    return public


def _privacy(header: LedgerHeader, ledger: Path) -> str:
    """Return the guarantee of a run as text; "" if it had none."""
    level = header.settings.get("privacy", "none")
    if level == "none":
        return ""
    log = PrivacyLog.read(ledger.with_name(LOG_NAME))
    delta = float(header.settings["target-delta"])
    protects = "one utterance" if level == "example" else "all of one device"
    return f"({most_spent(log.spent, delta):.3g}, {delta:g})-differential privacy of {protects}"
