# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.bench_layer_kernels`: norms and GELU of a layer, how near they come to a copy.

Both are bound by memory. The bytes that must be moved at least, over the time, is the bandwidth of
an implementation, and that over the bandwidth of a large copy of the same run is
`bandwidth_fraction`. What an implementation moves beyond is its loss. Values moved, [rows, h] and
[rows, f = 4h]:

    norm-pair  forward   3 h   read x, write both norms
               backward  5 h   read x and the gradients of the norms and of the residual stream,
                               write the gradient of x
    gelu       forward   2 f   read x, write GELU(x + b)
               backward  3 f   read x and the gradient, write that of x

Implementations:

    kernel     the one that Transformer Engine layers use (kernels/norm_pair.py, kernels/gelu.py)
    te         two norms of Transformer Engine, the three gradients of x added up by autograd
    torch      the same with torch's norms; torch's GELU, whose bias the product has added, and the
               sum of the gradient's rows for the bias
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn import functional as F

from bt_megatron.errors import BtError, LayoutError
from bt_megatron.kernels.gelu import bias_gelu
from bt_megatron.kernels.norm_pair import norm_pair
from bt_megatron.parallel import transformer_engine_check
from tools.benchmark_file import Row, write_benchmark
from tools.gpu_clock import Clock

WIDTHS = {"block-170m": 768, "block-420m": 1024, "block-1.2b": 2048}
ROWS = 81920
"""Rows of a token decoder, 5 positions a block of 4, from 32 sequences of 2,048 tokens."""
EPS = 1e-5
MOVED = {"norm-pair": {"forward": 3, "backward": 5}, "gelu": {"forward": 2, "backward": 3}}
"""Values of [rows, width of the operation] that are read or written at least."""
WIDENING = {"norm-pair": 1, "gelu": 4}
"""Width of an operation over that of the model."""

Implementation = Callable[[Tensor], tuple[Tensor, ...]]


class _AddedByProduct(torch.autograd.Function):
    """x, to which a product has added the bias: free forward, a sum over rows backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return gradient, gradient.flatten(0, -2).sum(dim=0)


def _paired_norms(parameters: Sequence[Parameter]) -> Implementation:
    first, second = parameters[:2], parameters[2:]
    return lambda x: norm_pair(x, tuple(first), tuple(second), eps=EPS)  # type: ignore[arg-type]


def _torch_norms(parameters: Sequence[Parameter]) -> Implementation:
    def run(x: Tensor) -> tuple[Tensor, ...]:
        parts = parameters[:2], parameters[2:]
        width = x.shape[-1:]
        return x.view_as(x), *(F.layer_norm(x, width, w, b, EPS) for w, b in parts)

    return run


def _te_norms(parameters: Sequence[Parameter]) -> Implementation:
    import transformer_engine.pytorch as te

    norms = []
    for weight, bias in (parameters[:2], parameters[2:]):
        norm = te.LayerNorm(len(weight), eps=EPS, params_dtype=weight.dtype)
        norm.weight, norm.bias = weight, bias
        norms.append(norm)
    return lambda x: (x.view_as(x), *(norm(x) for norm in norms))


def implementations(operation: str, parameters: Sequence[Parameter]) -> dict[str, Implementation]:
    """Return the implementations of an operation that work on this machine, functions of x.

    Args:
        operation: norm-pair or gelu.
        parameters: weight and bias of two norms, or the bias in front of GELU.
    """
    if operation == "gelu":
        (bias,) = parameters
        return {
            "kernel": lambda x: (bias_gelu(x, bias),),
            "torch": lambda x: (F.gelu(_AddedByProduct.apply(x, bias)),),
        }
    has_te = transformer_engine_check.find_problem() is None
    te = {"te": _te_norms(parameters)} if has_te else {}
    return {"kernel": _paired_norms(parameters), **te, "torch": _torch_norms(parameters)}


def make_inputs(
    operation: str, rows: int, width: int, dtype: torch.dtype, device: str
) -> tuple[Tensor, list[Parameter]]:
    """Return x [rows, 1, width of the operation] and weights and biases, or a bias of zeros."""
    generator = torch.Generator(device).manual_seed(0)
    place = {"device": device, "generator": generator}
    width *= WIDENING[operation]
    x = torch.randn(rows, 1, width, **place)
    if operation == "gelu":
        values = [torch.zeros(width, device=device)]
    else:
        values = [torch.randn(width, **place) for _ in range(4)]
    parameters = [Parameter(value.to(dtype)) for value in values]
    return x.to(dtype).requires_grad_(), parameters


def measure(operation: str, width: int, rows: int, clock: Clock, copy: float) -> Iterator[Row]:
    """Yield the bandwidths of every implementation.

    Args:
        operation: norm-pair or gelu.
        width: h of the model.
        rows: rows of x.
        clock: measures calls.
        copy: bytes per second that a copy reads and writes.
    """
    x, parameters = make_inputs(operation, rows, width, torch.bfloat16, "cuda")
    size = x.numel() * x.element_size()
    for name, implementation in implementations(operation, parameters).items():
        outs = implementation(x)
        upstream = [torch.randn_like(out) for out in outs]

        def forward(run: Implementation = implementation) -> None:
            with torch.no_grad():
                run(x)

        def backward(outs: Any = outs, upstream: Any = upstream) -> None:
            torch.autograd.grad(outs, (x, *parameters), upstream, retain_graph=True)

        directions: list[tuple[str, Callable[[], Any]]] = [
            ("forward", forward),
            ("backward", backward),
        ]
        if name == "te":  # its graph can be walked once only
            directions.pop()
        for direction, call in directions:
            seconds = clock.seconds([call])
            yield Row(
                case=f"kernel/{operation}",
                metric="bandwidth_fraction",
                value=MOVED[operation][direction] * size / seconds / copy,
                unit="of copy bandwidth",
                detail={
                    "h": width,
                    "rows": rows,
                    "dtype": "bf16",
                    "direction": direction,
                    "implementation": name,
                    "milliseconds": seconds * 1e3,
                },
            )


def say(text: str) -> None:
    """Print at once."""
    print(text, flush=True)  # noqa: T201


def run(arguments: argparse.Namespace) -> None:
    """Measure what the command line asks for.

    Raises:
        LayoutError: there is no GPU.
        BtError: the file cannot be written.
    """
    if not torch.cuda.is_available():
        raise LayoutError(
            "tools.bench_layer_kernels - 0 CUDA devices, needs 1 - run it on a machine with a GPU"
        )
    clock = Clock(arguments.repetitions)
    copy = clock.copy_bandwidth()
    say(f"copy: {copy / 1e12:.3f} TB/s read and written")
    rows = []
    for model, width in WIDTHS.items():
        for operation in MOVED:
            for row in measure(operation, width, arguments.rows, clock, copy):
                rows.append(row)
                detail = row.detail
                say(
                    f"{model:<11} {operation:<10} {detail['direction']:<9} "
                    f"{detail['implementation']:<7} {detail['milliseconds']:7.3f} ms, "
                    f"{row.value:.3f} of a copy"
                )
    if arguments.benchmark is not None:
        write_benchmark(arguments.benchmark, rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench_layer_kernels",
        description="Bandwidth of the norms and the GELU of a layer over that of a copy.",
    )
    parser.add_argument("--rows", type=int, default=ROWS, help=f"rows of x (default: {ROWS})")
    parser.add_argument("--repetitions", type=int, default=20, metavar="N")
    parser.add_argument("--benchmark", type=Path, metavar="FILE", help="write the results as JSON")
    try:
        run(parser.parse_args(argv))
    except BtError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
