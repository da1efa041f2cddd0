# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.bench_attention`: causal attention of the block decoder and of vanilla models.

Forward and backward of one layer, in bf16, by every implementation that could do it:

    te, te-deterministic          Transformer Engine (cuDNN), without and with a fixed order of sums
    flash, flash-deterministic    torch's scaled_dot_product_attention, FlashAttention 2
    cudnn                         torch's scaled_dot_product_attention, cuDNN
"""

import argparse
import contextlib
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from tools.benchmark_file import Row, write_benchmark

SHAPES = {
    "block-420m": (16, 512, 16, 64),
    "block-1.2b": (8, 512, 16, 128),
    "vanilla-410m": (16, 2048, 16, 64),
    "block-170m-131072-tokens": (1, 32768, 12, 64),
    "block-170m-1048576-tokens": (1, 262144, 12, 64),
}
"""[b, s, a, d] by case."""
REPEATS = 10
LONG_REPEATS = 2
GIB = 2**30
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def ways(heads: int, width: int) -> dict[str, Attention]:
    """Return the implementations, each of query, key and value [s, b, a, d]."""
    return {
        "te": _transformer_engine(heads, width, deterministic=False),
        "te-deterministic": _transformer_engine(heads, width, deterministic=True),
        "flash": _torch(SDPBackend.FLASH_ATTENTION),
        "flash-deterministic": _torch(SDPBackend.FLASH_ATTENTION),
        "cudnn": _torch(SDPBackend.CUDNN_ATTENTION),
    }


def _transformer_engine(heads: int, width: int, *, deterministic: bool) -> Attention:
    import transformer_engine.pytorch as te

    module = te.DotProductAttention(
        heads, width, attention_dropout=0.0, qkv_format="sbhd", attn_mask_type="causal"
    )
    for part in (module, module.fused_attention, module.flash_attention):
        part.deterministic = deterministic
    return lambda query, key, value: module(query, key, value)


def _torch(backend: SDPBackend) -> Attention:
    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        with sdpa_kernel(backend):
            out = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return out.permute(2, 0, 1, 3).flatten(2)

    return attend


@contextlib.contextmanager
def _order_of_sums(way: str) -> Iterator[None]:
    torch.use_deterministic_algorithms(way == "flash-deterministic")
    yield
    torch.use_deterministic_algorithms(False)


def measure(case: str, way: str, attend: Attention) -> list[Row]:
    """Return median milliseconds and the memory that one forward and backward pass took."""
    batch, length, heads, width = SHAPES[case]
    shape = (length, batch, heads, width)
    inputs = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(4)]
    *qkv, gradient = [x.requires_grad_() for x in inputs[:3]] + [inputs[3].flatten(2)]
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    times = []
    for _ in range(2 + (LONG_REPEATS if length > 50_000 else REPEATS)):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        torch.autograd.grad(attend(*qkv), qkv, gradient)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    peak = (torch.cuda.max_memory_allocated() - before) / GIB
    name = f"kernel/causal-attention/{case}/{way}"
    detail = {"b": batch, "s": length, "a": heads, "d": width, "dtype": "bf16"}
    milliseconds = statistics.median(times[2:])
    return [
        Row(case=name, metric="forward_backward", value=milliseconds, unit="ms", detail=detail),
        Row(case=name, metric="peak_memory", value=peak, unit="GiB"),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench_attention")
    parser.add_argument("--benchmark", type=Path, metavar="FILE", help="write the numbers there")
    arguments = parser.parse_args(argv)
    rows: list[Row] = []
    for case, (_, _, heads, width) in SHAPES.items():
        for way, attend in ways(heads, width).items():
            try:
                with _order_of_sums(way):
                    found = measure(case, way, attend)
            except RuntimeError as error:
                print(f"{case:<28} {way:<22} {str(error).splitlines()[0][:80]}", flush=True)  # noqa: T201
                continue
            rows += found
            figures = f"{found[0].value:10.3f} ms {found[1].value:8.2f} GiB"
            print(f"{case:<28} {way:<22} {figures}", flush=True)  # noqa: T201
    if arguments.benchmark:
        write_benchmark(arguments.benchmark, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
