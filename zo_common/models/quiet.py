"""Suppression of transformers' progress bars and advice, for programs with their own messages."""

from __future__ import annotations

import logging as python_logging

# torchao, which transformers imports where it is installed, lists extensions for other processors
_LOUD = ("torchao", "torch.utils._pytree")


def quiet_transformers(*, warnings: bool = True) -> None:
    """No progress bars of transformers in this process, and with `warnings` no warnings either."""
    for name in _LOUD:
        python_logging.getLogger(name).setLevel(python_logging.ERROR)
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if warnings:
        logging.set_verbosity_error()  # type: ignore[no-untyped-call]
