"""What a Python program that trains sees of transformers: nothing, and its own settings of it stay."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable

from transformers.utils import logging as transformers_logging

from train.run import run_here
from zo_common.config.run import RunConfig
from zo_common.console import LineHandler


def test_no_advice_of_transformers_and_its_settings_stay(settings: Callable[..., RunConfig]) -> None:
    seen: list[str] = []
    listener = LineHandler(seen.append)
    listener.setLevel(logging.WARNING)
    before, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_warning()
    transformers_logging.enable_progress_bar()
    transformers_logging.add_handler(listener)
    try:
        with warnings.catch_warnings(record=True) as python:
            warnings.simplefilter("default")
            run_here(settings(eval_split="test", num_server_rounds=1))
        assert transformers_logging.get_verbosity() == logging.WARNING
        assert transformers_logging.is_progress_bar_enabled()
    finally:
        transformers_logging.remove_handler(listener)
        transformers_logging.set_verbosity(before)
        if not bars:
            transformers_logging.disable_progress_bar()
    assert seen == []
    assert [str(warning.message) for warning in python if "site-packages" not in warning.filename] == []
