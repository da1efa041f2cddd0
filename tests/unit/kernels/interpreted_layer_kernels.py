# SPDX-License-Identifier: Apache-2.0
"""Runs the kernels of norms and GELU on CPU tensors, under TRITON_INTERPRET=1, against float64.

A program of its own, because Triton decides between compiling and interpreting when the kernels
are imported.
"""

import sys

import torch
from torch.nn import functional as F
from triton.runtime import interpreter

from bt_megatron.kernels import gelu, gelu_triton, norm_pair, norm_pair_triton

ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-7}
"""Distance from float64, of the norm: float32 sums, or values cut off, as the interpreter does."""


def let_loops_run():
    """Repair the bounds of loops: Triton 3.6 has numpy turn [5] into 5, which numpy 2.4 refuses."""
    patch = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patched


def compare(function, reference, inputs):
    """Compare outputs and the gradients of all inputs; None is handed on."""
    torch.manual_seed(1)
    given = [None if x is None else x.clone().requires_grad_() for x in inputs]
    exact = [None if x is None else x.double().requires_grad_() for x in inputs]
    got, wanted = function(*given), reference(*exact)
    upstream = [torch.randn_like(x) for x in got]
    got += torch.autograd.grad(got, [x for x in given if x is not None], upstream)
    upstream = [x.double() for x in upstream]
    wanted += torch.autograd.grad(wanted, [x for x in exact if x is not None], upstream)
    for index, (mine, right) in enumerate(zip(got, wanted, strict=True)):
        distance = (mine.double() - right).norm() / right.norm()
        assert distance < ROUNDING[mine.dtype], (index, mine.shape, distance)


def compare_norms(dtype, rows, width, biases):
    torch.manual_seed(0)
    hidden = (torch.randn(rows, 1, width) * 3 + 1).to(dtype)
    affine = [torch.randn(width).to(dtype) if biases or index % 2 == 0 else None
              for index in range(4)]  # fmt: skip

    def reference(x, *affine):
        plain = norm_pair._plain
        return x * 1, plain(x, affine[:2], 1e-5), plain(x, affine[2:], 1e-5)

    compare(lambda *inputs: norm_pair._NormPair.apply(*inputs, 1e-5), reference, [hidden, *affine])


def compare_gelu(dtype, rows, width):
    torch.manual_seed(0)
    inputs = [(torch.randn(rows, 1, width) * 2).to(dtype), torch.randn(width).to(dtype)]
    compare(
        lambda *inputs: (gelu._BiasGelu.apply(*inputs),),
        lambda x, bias: (F.gelu(x + bias),),
        inputs,
    )


NORMS = {
    "one row": (1, 768),
    "fewer columns than a warp": (5, 6),
    "several rows a program": (21, 16),
    "whole rows": (3, 1024),
}
GELU = {
    "one row": (1, 40),
    "several columns of programs, an odd row": (5, 1500),
    "several rows a program": (85, 16),
}

if __name__ == "__main__":
    let_loops_run()
    gelu_triton.RESIDENT_WARPS = norm_pair_triton.RESIDENT_WARPS = 8
    for dtype in ROUNDING:
        for name, sizes in NORMS.items() if sys.argv[1] == "norm_pair" else ():
            for biases in (True, False):
                compare_norms(dtype, *sizes, biases)
                print(f"{name}, {biases=}, {dtype}: equal")  # noqa: T201
        for name, sizes in GELU.items() if sys.argv[1] == "gelu" else ():
            compare_gelu(dtype, *sizes)
            print(f"{name}, {dtype}: equal")  # noqa: T201
