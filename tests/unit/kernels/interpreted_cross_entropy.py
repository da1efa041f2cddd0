# SPDX-License-Identifier: Apache-2.0
"""Runs the Triton kernels on CPU tensors, under TRITON_INTERPRET=1, against the plain form.

A program of its own, because Triton decides between compiling and interpreting when the kernels
are imported.
"""

import torch

from bt_megatron.kernels import cross_entropy_triton
from bt_megatron.kernels.cross_entropy import VocabShard, logits_to_gradient_, row_statistics

CASES = {
    "one block, padding": (3, 40, VocabShard(first=100, real=37)),
    "several blocks": (2, 3 * cross_entropy_triton.BLOCK + 5, VocabShard(first=0, real=9000)),
    "whole blocks": (2, 2 * cross_entropy_triton.BLOCK, VocabShard(7, 2 * 4096)),
    "padding only": (2, 40, VocabShard(first=80, real=0)),
}


def compare(dtype: torch.dtype, rows: int, columns: int, shard: VocabShard) -> None:
    torch.manual_seed(0)
    logits = (torch.randn(rows, columns) * 3).to(dtype)
    logits[:, shard.real :] = 60.0  # padding that would win, if it were read
    inside = shard.first + max(shard.real - 1, 0)
    targets = torch.tensor([inside, shard.first - 1, shard.first + shard.real])[:rows]

    got = torch.full((rows, 3), torch.nan)
    cross_entropy_triton.write_statistics(logits, targets, got, first=shard.first, real=shard.real)
    expected = row_statistics(logits, targets, shard)
    torch.testing.assert_close(got, expected, rtol=2e-6, atol=0)

    factors = torch.stack((torch.full((rows,), 12.0), torch.ones(rows), torch.rand(rows)), dim=1)
    changed = logits.clone()
    cross_entropy_triton.write_gradient(
        changed, targets, factors, first=shard.first, real=shard.real
    )
    expected = logits_to_gradient_(logits, targets, factors, shard)
    rtol = 2**-7 if dtype == torch.bfloat16 else 2e-6
    torch.testing.assert_close(changed, expected, rtol=rtol, atol=1e-12)


if __name__ == "__main__":
    for name, case in CASES.items():
        for dtype in (torch.float32, torch.bfloat16):
            compare(dtype, *case)
            print(f"{name}, {dtype}: equal")  # noqa: T201
