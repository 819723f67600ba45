"""Settings of a resumed run: those that must match the ledger, and a log of those that were changed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from server.run.log import SETTINGS_LOG, read_rows, write_rows
from zo_common.config.run import SETTINGS, RunConfig
from zo_common.config.setting import Setting
from zo_common.errors import ConfigError
from zo_common.lattice.trained import AUTO
from zo_common.ledger.ledger import LedgerHeader

logger = logging.getLogger(__name__)
_HEADER_FIELDS = {
    "run-seed": "run_seed",
    "trained-tensors": "pattern",
    "scale": "scale",
    "epsilon": "epsilon",
    "estimator": "estimator",
}
_LEVEL = "privacy"
Change = tuple[str, Any, Any]  # the setting's key, its value before and now


def ledger_settings(config: RunConfig) -> dict[str, Any]:
    """Return the header's `settings`: all that a resumed run must not change, and how updates are computed."""
    values = config.to_mapping()
    return {each.key: values[each.key] for each in SETTINGS if _in_settings(each, config)}


def _in_settings(each: Setting, config: RunConfig) -> bool:
    if each.key in _HEADER_FIELDS:
        return False
    if each.section == "privacy":
        return each.key == _LEVEL or config.privacy != "none"
    return each.fixed or each.section in ("method", "aggregation")


def recorded_settings(header: LedgerHeader) -> dict[str, Any]:
    """Return all settings in a ledger's header, by key; older ledgers hold fewer."""
    own = {key: getattr(header, name) for key, name in _HEADER_FIELDS.items()}
    return {_LEVEL: "none"} | header.settings | own | {"epsilon": header.epsilon or AUTO}


def fixed_changes(header: LedgerHeader, config: RunConfig) -> list[Change]:
    """Return the settings that must match the ledger but differ; those missing in an older ledger are not compared."""
    then, now = recorded_settings(header), config.to_mapping()
    changes = _changes(then, now, [each for each in SETTINGS if each.fixed and not _is_open(each, config)])
    if then[_LEVEL] != config.privacy:  # the other settings of privacy follow from it
        dependent = {each.key for each in SETTINGS if each.section == "privacy"} - {_LEVEL}
        return [change for change in changes if change[0] not in dependent]
    return changes


def _is_open(each: Setting, config: RunConfig) -> bool:
    """Return whether the value leaves the choice to the run, which then uses the ledger's."""
    return (each.key == "trained-tensors" and config.trained_tensors == AUTO) or (
        each.key == "noise-multiplier" and not config.noise_multiplier
    )


def _changes(then: dict[str, Any], now: dict[str, Any], settings: list[Setting]) -> list[Change]:
    keys = [each.key for each in settings if each.key in then]
    return [(key, then[key], now[key]) for key in keys if then[key] != now[key]]


def refuse_fixed_changes(header: LedgerHeader, config: RunConfig) -> None:
    """Refuse to continue a ledger with settings that must not change.

    Raises:
        ConfigError: names each setting, its value in the ledger, the requested value, and the remedy.
    """
    changes = fixed_changes(header, config)
    if changes:
        different = "; ".join(f"{key} is {then!r} in the ledger, {now!r} was asked" for key, then, now in changes)
        remedy = " ".join(f"{key}={_written(then)}" for key, then, _ in changes)
        raise ConfigError(f"{different}: set {remedy} to resume this run, or name another output for a new one")


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def log_settings(config: RunConfig, header: LedgerHeader, last_round: int, *, resumed: bool) -> None:
    """Add a line to `<output>/settings.jsonl`, and report in one line what a resumed run changes.

    The old values are those of the previous start or, if its line is missing, those of the ledger.
    """
    path = Path(config.output) / SETTINGS_LOG
    rows = read_rows(path) if resumed and path.exists() else []
    before = rows[-1].get("settings") if rows else None
    then = before if isinstance(before, dict) else recorded_settings(header)
    now = config.to_mapping()
    free = [each for each in SETTINGS if not (each.fixed or each.about.quiet)]
    changes = _changes(then, now, free) if resumed else []
    if changes:
        listed = ", ".join(f"{key} {_written(old)} → {_written(new)}" for key, old, new in changes)
        logger.info(f"resumed with other settings: {listed}")
    row = {"after_round": last_round, "changed": {key: [old, new] for key, old, new in changes}, "settings": now}
    try:
        write_rows(path, [*rows, row])
    except OSError as error:
        logger.warning(f"{path} is not written: {error.strerror}")
