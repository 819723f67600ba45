"""The Hugging Face hub, or what was downloaded from it before: its clients wait a minute for a network that is down.

One question of a few seconds finds out; without an answer the clients work offline, as with HF_HUB_OFFLINE=1.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from zo_common.paths import home_expanded

ANSWER_SECONDS = 3.0
_KEPT_SECONDS = 60.0
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_last: tuple[float, bool] | None = None
T = TypeVar("T")
P = ParamSpec("P")


def hub_answers() -> bool:
    """Return whether the hub can be reached, also through the environment's proxy; an answer counts for a minute."""
    global _last
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if _last is None or time.monotonic() - _last[0] > _KEPT_SECONDS:
        _last = time.monotonic(), _ask(constants.ENDPOINT)
    return _last[1]


def _ask(endpoint: str) -> bool:
    from huggingface_hub import get_session

    answered: list[bool] = []

    def ask() -> None:
        try:
            get_session().head(endpoint, timeout=ANSWER_SECONDS)
        except Exception:  # what a proxy, a resolver or a certificate may raise
            return
        answered.append(True)

    thread = threading.Thread(target=ask, daemon=True)  # a resolver knows no timeout
    thread.start()
    thread.join(ANSWER_SECONDS)
    return bool(answered)


def is_hub_id(source: str) -> bool:
    """Return whether a name may be a hub id, and is no path of this machine."""
    return bool(_HUB_ID.fullmatch(source)) and not os.path.exists(source)  # noqa: PTH110  (never raises)


def _clients() -> list[Any]:
    """Return the modules that say whether the hub may be asked; a device need not have `datasets`."""
    from huggingface_hub import constants

    with suppress(ImportError):
        import datasets.config

        return [constants, datasets.config]
    return [constants]


@contextmanager
def hub_or_cache(source: str) -> Iterator[None]:
    """Within it, a hub id whose hub does not answer is looked for in what was downloaded before, without waiting.

    Args:
        source: a hub id, or a file or folder, for which nobody is asked.
    """
    if not is_hub_id(source) or hub_answers():
        yield
        return
    clients = _clients()
    before = [client.HF_HUB_OFFLINE for client in clients]
    for client in clients:
        client.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for client, offline in zip(clients, before, strict=True):
            client.HF_HUB_OFFLINE = offline


def from_hub_or_cache(load: Callable[Concatenate[str, P], T]) -> Callable[Concatenate[str, P], T]:
    """Return a function of a source within `hub_or_cache`; the home folder may be written ~ in it."""

    @wraps(load)
    def loaded(source: str, /, *others: P.args, **named: P.kwargs) -> T:
        with hub_or_cache(source):
            return load(home_expanded(source), *others, **named)

    return loaded
