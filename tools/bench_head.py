# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.bench_head`: time and memory of the head, forward and backward, on one GPU.

The same losses and the same fp32 weight gradient are computed in three ways:

    plain     bf16 logits, Megatron-Core's cross entropy over an fp32 copy of them
    whole     linear_cross_entropy, logits of all rows kept for the backward pass
    chunks    linear_cross_entropy, --chunk rows at a time, computed again where needed
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy
from torch import Tensor
from torch.nn import functional as F

from bt_megatron.errors import BtError, LayoutError
from bt_megatron.kernels.linear_cross_entropy import linear_cross_entropy
from tools.benchmark_file import Row, write_benchmark

WIDTHS = (768, 1024, 2048)
VOCAB, ROWS, CHUNK = 50304, 32768, 8192
WARM_UP, REPEATS = 3, 20

Losses = Callable[[Tensor, Tensor, Tensor], Tensor]


def ways(chunk: int) -> dict[str, Losses]:
    """Return the ways to compute losses of hidden states, weight and targets.

    Args:
        chunk: rows of logits at a time in `chunks`.

    Comm: the plain way, all-reduces over a group of one, dist.group.WORLD.
    """

    def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        logits = F.linear(hidden, weight).float()
        return vocab_parallel_cross_entropy(logits, targets, tp_group=dist.group.WORLD)

    def fused(chunk_rows: int | None) -> Losses:
        def losses(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
            return linear_cross_entropy(
                hidden,
                weight,
                targets,
                vocab_size=len(weight),
                chunk_rows=chunk_rows,
                into_main_grad=True,
            )

        return losses

    return {"plain": plain, "whole": fused(None), "chunks": fused(chunk)}


def make_inputs(
    rows: int, width: int, vocab: int, device: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden states, a weight with Megatron's gradient buffer, and targets.

    Args:
        rows: tokens.
        width: h.
        vocab: v.
        device: where they are.
        dtype: of the hidden states and the weight.
    """
    generator = torch.Generator(device).manual_seed(0)
    place = {"device": device, "generator": generator}
    hidden = torch.randn(rows, width, **place).to(dtype).requires_grad_()
    weight = torch.nn.Parameter((torch.randn(vocab, width, **place) * 0.02).to(dtype))
    weight.main_grad = torch.zeros(vocab, width, device=device)
    weight.grad_added_to_main_grad = False
    return hidden, weight, torch.randint(vocab, (rows,), **place)


def step(losses: Losses, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Run forward and backward once, with what Megatron's hook does to a weight's gradient.

    Returns:
        The losses, [rows].
    """
    hidden.grad = None
    result = losses(hidden, weight, targets)
    result.sum().backward()
    if not weight.grad_added_to_main_grad:
        weight.main_grad.add_(weight.grad)
    weight.grad, weight.grad_added_to_main_grad = None, False
    return result.detach()


def measure(width: int, *, chunk: int, rows: int) -> list[Row]:
    """Time each way on this GPU.

    Args:
        width: h.
        chunk: rows of logits at a time in `chunks`.
        rows: tokens.

    Returns:
        Milliseconds (median) and GiB on top of inputs and buffers, of each way.
    """
    inputs = make_inputs(rows, width, VOCAB, "cuda", torch.bfloat16)
    result = []
    for name, losses in ways(chunk).items():
        for _ in range(WARM_UP):
            step(losses, *inputs)
        inputs[0].grad = None
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        times = [_milliseconds(losses, inputs) for _ in range(REPEATS)]
        peak = (torch.cuda.max_memory_allocated() - before) / 2**30
        detail = {"rows": rows, "h": width, "v": VOCAB, "dtype": "bf16"}
        if name == "chunks":
            detail["chunk_rows"] = chunk
        case = f"kernel/head/h{width}/{name}"
        spread = {"min": min(times), "max": max(times), "repeats": REPEATS}
        result.append(Row(case=case, metric="forward_backward", value=statistics.median(times),
                          unit="ms", detail=detail | spread))  # fmt: skip
        result.append(Row(case=case, metric="peak_memory", value=peak, unit="GiB", detail=detail))
    return result


def _milliseconds(losses: Losses, inputs: tuple[Tensor, Tensor, Tensor]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    step(losses, *inputs)
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench_head",
        description="Measure the output layer and cross entropy, forward and backward.",
    )
    parser.add_argument("--rows", type=int, default=ROWS, help=f"tokens (default: {ROWS})")
    parser.add_argument("--chunk", type=int, default=CHUNK, help=f"rows (default: {CHUNK})")
    parser.add_argument("--benchmark", type=Path, metavar="FILE", help="write the results as JSON")
    arguments = parser.parse_args(argv)
    try:
        if not torch.cuda.is_available():
            raise LayoutError("tools.bench_head - 0 CUDA devices, needs 1 - run it on a GPU")
        dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
        rows = []
        for width in WIDTHS:
            rows += measure(width, chunk=arguments.chunk, rows=arguments.rows)
            for row in rows[-6:]:
                print(f"{row.case:<28} {row.metric:<17} {row.value:8.2f} {row.unit}")  # noqa: T201
        dist.destroy_process_group()
        if arguments.benchmark is not None:
            write_benchmark(arguments.benchmark, rows)
    except BtError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
