"""CPU kernel against torch over the weights of Whisper-tiny: one in-place pass, fused directions, checksum."""

from __future__ import annotations

import argparse

import torch
from torch import nn

from benchmarks.rows import ratio, spread, store, timed
from zo_common.state import LatticeState

WHISPER_TINY_ELEMENTS = 37_760_640  # parameters of Whisper-tiny.en, tied ones once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--fused", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows, left = 384 * 1536, WHISPER_TINY_ELEMENTS
    weights = [nn.Parameter(torch.randn(min(rows, left - start)) * 0.05) for start in range(0, left, rows)]
    model = nn.ParameterList(weights)
    state = LatticeState(model, "all", threads=arguments.threads)
    step = state.epsilon_units(1e-3)
    seeds = list(range(arguments.fused))
    other = [torch.randn(len(w)) for w in weights]

    def plain_add() -> None:
        for weight in weights:
            weight.data.add_(0.0)

    def randn_add() -> None:
        torch.manual_seed(1)
        for weight, scratch in zip(weights, other, strict=True):
            torch.randn(len(weight), out=scratch)
            weight.data.add_(scratch, alpha=0.0)

    one = ratio(lambda: state.shift([7], step), plain_add, arguments.repeats)
    small = step // 1000
    fused = timed(lambda: state.shift(seeds, small.repeat(len(seeds), axis=1)), 5)
    signs = [len(seeds) * state.num_elements / s / arguments.threads for s in fused]
    numbers = {
        "threads": arguments.threads,
        "elements": state.num_elements,
        "one_pass_over_torch_add": one,
        "one_pass_over_manual_seed_randn_add": ratio(lambda: state.shift([7], step), randn_add, arguments.repeats),
        "checksum_over_torch_add": ratio(state.checksum, plain_add, arguments.repeats),
        "fused_signs_per_second_per_core": spread(signs),
    }
    path = store("kernel", numbers)
    print(f"one pass ÷ torch add_: {one['median']:.2f} ({one['min']:.2f} … {one['max']:.2f}); wrote {path}")


if __name__ == "__main__":
    main()
