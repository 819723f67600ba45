"""The kernels compile for a Hopper GPU: that needs Triton's compiler and no GPU."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("triton")

CODE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from zo_common.lattice.kernels import cuda as k

table, terms = "*i64", "*i64"
kernels = {
    "add": (k._add, {"chunks": table, "ids": "*i64", "terms": terms, "num_seeds": "i32"}, {"blocks": k.CHUNK_BLOCKS}),
    "peaks": (k._peaks, {"chunks": table, "largest": "*i32"}, {"tile": k.CHUNK_ELEMENTS}),
    "sums": (k._sums, {"chunks": table, "inverses": "*fp32", "sums": "*i64"}, {"tile": k.CHUNK_ELEMENTS}),
}
for name, (kernel, signature, constants) in kernels.items():
    for aligned in (True, False):
        constexprs = {**constants, "columns": k.COLUMNS, "aligned": aligned}
        names = {argument: signature.get(argument, "constexpr") for argument in kernel.arg_names}
        source = ASTSource(fn=kernel, signature=names, constexprs=constexprs)
        built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": k.WARPS})
        print(name, aligned, len(built.asm["cubin"]), ".local" in built.asm["ptx"])
"""


@pytest.mark.slow
def test_all_kernels_compile_for_a_hopper_gpu_without_spilling() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False, timeout=300)

    assert done.returncode == 0, done.stderr
    built = [line.split() for line in done.stdout.splitlines()]
    assert [line[:2] for line in built] == [[n, a] for n in ("add", "peaks", "sums") for a in ("True", "False")]
    assert all(int(size) > 1000 for _, _, size, _ in built)
    assert all(spills == "False" for *_, spills in built)
