"""Suppression of transformers' progress bars and advice, for programs with their own messages."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import ERROR

_lock = threading.Lock()
_inside = 0
_restore: Callable[[], None] | None = None  # set while a thread is within `transformers_quiet`


def quiet_transformers() -> None:
    """No progress bars and no warnings of transformers in this process from here on.

    This is for commands. What a Python program may call uses `transformers_quiet`.
    """
    from transformers.utils import logging

    _show_bars(False)
    logging.set_verbosity(ERROR)


@contextmanager
def transformers_quiet() -> Iterator[None]:
    """No progress bars and no warnings of transformers within; afterwards both are as the caller had set them.

    Several threads may be within at a time: the last one that leaves restores.
    """
    global _inside, _restore
    with _lock:
        if _inside == 0:
            _restore = _as_now()
            quiet_transformers()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0 and _restore is not None:
                _restore()


def _as_now() -> Callable[[], None]:
    """Return a function that sets warnings and bars as they are now."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    no_downloads = are_progress_bars_disabled()

    def restore() -> None:
        logging.set_verbosity(verbosity)
        if bars:
            _show_bars(True)
            if no_downloads:  # the line before shows those, too
                disable_progress_bars()

    return restore


def _show_bars(shown: bool) -> None:
    from transformers.utils import logging

    change: Callable[[], None] = logging.enable_progress_bar if shown else logging.disable_progress_bar
    change()
