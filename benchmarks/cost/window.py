"""Short loss windows compared with the 30 s window: cosine of gradients, loss error, processor time of a forward.

Back-propagation is used here only, to measure: the full gradient of the encoder's weights on the same utterances, on
Whisper's 30 s window, on windows cut to the speech, and on cut windows with a merged silent tail of several sizes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.harness.rows import store
from simulations.models.whisper_import import bundled_whisper
from simulations.speech.corpus import CorpusConfig, write_corpus
from zo_common.lattice.trained import select
from zo_common.models.load import load_model
from zo_common.models.whisper.objectives import whisper_losses
from zo_common.speech.whisper import SpeechDataset, load_dataset

BATCH = 8


def gradient(model: Any, data: SpeechDataset, tail_tokens: int, full: bool) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return mean gradient of the trained tensors (flattened), losses, and processor seconds of the forwards alone."""
    model.zero_grad()
    losses, seconds = [], 0.0
    for chosen in data.length_sorted_batches(BATCH):
        batch = data.batch(chosen, full_window=full)
        with torch.inference_mode():
            start = time.process_time()
            losses.append(whisper_losses(model, batch, tail_tokens))
            seconds += time.process_time() - start
        (whisper_losses(model, batch, tail_tokens).sum() / len(data)).backward()  # type: ignore[no-untyped-call]
    flat = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return flat.clone(), torch.cat(losses), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tensors", default="encoder-early")
    parser.add_argument("--tails", type=int, nargs="+", default=[0, 16, 32, 64, 128])
    parser.add_argument("--utterances-per-speaker", type=int, default=4)
    arguments = parser.parse_args()
    model, processor = load_model(str(bundled_whisper(Path("models"))))
    for parameter in select(model, arguments.tensors).values():
        parameter.requires_grad_(True)
    with tempfile.TemporaryDirectory() as directory:
        config = CorpusConfig(utterances_per_speaker=arguments.utterances_per_speaker)
        write_corpus(Path(directory) / "corpus", config)
        data = load_dataset(str(Path(directory) / "corpus"), processor, split="train")
    reference, exact, full_seconds = gradient(model, data, 0, full=True)
    rows = []
    for tail in arguments.tails:
        found, losses, seconds = gradient(model, data, tail, full=False)
        rows.append(
            {
                "tail_tokens": tail,
                "gradient_cosine": float(F.cosine_similarity(found.double(), reference.double(), dim=0)),
                "gradient_norm_ratio": float(found.norm() / reference.norm()),
                "loss_rms_error": float((losses - exact).square().mean().sqrt()),
                "forward_time_over_full_window": seconds / full_seconds,
            }
        )
        print(rows[-1], flush=True)
    numbers = {
        "tensors": arguments.tensors,
        "utterances": len(data),
        "full_window_loss": float(exact.mean()),
        "rows": rows,
    }
    print(f"wrote {store('window', numbers)}")


if __name__ == "__main__":
    main()
