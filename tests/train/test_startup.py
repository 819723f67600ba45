"""What training on one machine imports before its first step: nothing that only other tasks need."""

from __future__ import annotations

import subprocess
import sys

import pytest

ELSEWHERE = (
    *("ray", "datasets", "pyarrow", "pandas", "flwr_datasets"),  # simulations, saved data sets
    *("matplotlib", "tensorboard", "mlflow", "wandb", "prometheus_client"),  # pictures and trackers
    *("ctranslate2", "peft", "espeakng_loader", "dp_accounting"),
    *("torch.utils.tensorboard", "transformers.trainer", "client.worker"),
)


@pytest.mark.parametrize("module", ["train.run", "train.cli"])
def test_it_imports_no_library_that_only_other_tasks_need(module: str) -> None:
    code = f"import sys, {module}; print(*[name for name in {ELSEWHERE} if name in sys.modules])"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=240)

    assert done.stdout.split() == []
