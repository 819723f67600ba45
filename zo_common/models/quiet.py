"""Suppression of transformers' progress bars and advice, for programs with their own messages."""

from __future__ import annotations


def quiet_transformers(*, warnings: bool = True) -> None:
    """No progress bars of transformers in this process, and with `warnings` no warnings either."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if warnings:
        logging.set_verbosity_error()  # type: ignore[no-untyped-call]
