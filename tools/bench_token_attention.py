# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.bench_token_attention --json FILE`: how near the kernels come to a copy.

The floor of this attention is memory: the bytes that must be moved at least, over
the time, is its bandwidth, and that over the bandwidth of a large device copy of the
same run is `bandwidth_fraction`. Bytes counted, e bytes per element:

    forward   q * columns * (width + a*d) * e             read qkv, write out
    backward  q * columns * (2 * width + a*d) * e         read qkv and the gradient of out,
                                                          write the gradient of qkv
    copy      2 * size                                    read and write

with width = (a + 2*groups) * d. Mask and angles (under 1 %) are not counted, and what an
implementation moves beyond this is its loss: the same bytes are counted for plain torch.

Times are those of tools/gpu_clock.py; the calls of a series take turns with enough buffers to
exceed the L2 cache.
`--tune` measures every tile of token_attention_tiling.py instead and prints the best.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bt_megatron.errors import BtError, ConfigError
from bt_megatron.kernels.token_attention import attend, attend_backward
from bt_megatron.kernels.token_attention_tiling import (
    KernelShape,
    Tiling,
    candidate_tilings,
    choose_tiling,
)
from tools.benchmark_file import Row, write_benchmark
from tools.gpu_clock import Clock

CASE = "kernel/token-attention"
BUFFER_BYTES = 2**30
"""Bytes that the buffers of a case have at least together; the L2 cache of an H100: 50 MB."""
ROTATED = 0.25
AGREEMENT = 0.02
"""Relative norm of the difference at which another implementation counts as right."""


@dataclass(frozen=True)
class Shape:
    """One attention to measure, without groups and with rotary on a quarter of each head."""

    positions: int
    head_dim: int
    heads: int
    columns: int

    @property
    def kernel(self) -> KernelShape:
        """What the kernels are told."""
        return KernelShape(
            positions=self.positions,
            heads=self.heads,
            groups=self.heads,
            head_dim=self.head_dim,
            rotated=int(ROTATED * self.head_dim),
            scale=self.head_dim**-0.5,
            causal=True,
            rows=0,
        )

    def bytes_moved(self, direction: str, element_size: int) -> int:
        """Return the bytes that must be moved at least."""
        out = self.heads * self.head_dim
        width = 3 * out + out if direction == "forward" else 6 * out + out
        return self.positions * self.columns * width * element_size


SHAPES = (
    Shape(5, 64, 16, 8192),
    Shape(5, 64, 16, 32768),
    Shape(5, 64, 16, 131072),
    Shape(5, 64, 12, 32768),
    Shape(5, 128, 16, 32768),
    Shape(8, 64, 16, 32768),
    Shape(10, 64, 16, 32768),
    Shape(10, 128, 16, 16384),
    Shape(33, 64, 16, 8192),
)
"""q = 5: two prefix vectors and blocks of four; a = 16, d = 64 and 128: block-420m, block-1.2b."""


@dataclass(frozen=True)
class Buffers:
    """Inputs of a shape, several times over."""

    qkv: list[Tensor]
    out_grad: list[Tensor]
    rotary: Tensor
    mask: Tensor
    """[q, columns] bool"""


def make_buffers(shape: Shape, dtype: torch.dtype, device: str = "cuda") -> Buffers:
    """Draw inputs; a tenth of the keys are padding, never the first."""
    generator = torch.Generator(device).manual_seed(0)
    rows = (shape.positions * shape.columns, 1)
    out = shape.heads * shape.head_dim

    def draw(*sizes: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.randn(*sizes, device=device, dtype=kind, generator=generator)

    count = max(2, -(-BUFFER_BYTES // shape.bytes_moved("forward", dtype.itemsize)))
    angles = draw(shape.positions, shape.kernel.rotated // 2, kind=torch.float32)
    angles = torch.cat((angles, angles), dim=-1)
    mask = draw(shape.positions, shape.columns, kind=torch.float32) > -1.28
    mask[0] = True
    return Buffers(
        qkv=[draw(*rows, 3 * out) for _ in range(count)],
        out_grad=[draw(*rows, out) for _ in range(count)],
        rotary=torch.stack((angles.cos(), angles.sin())),
        mask=mask,
    )


def kernel_calls(
    shape: Shape, buffers: Buffers, direction: str, tiling: Tiling
) -> list[Callable[[], Tensor]]:
    """Return calls of our kernel, one for each buffer."""
    inputs = (buffers.rotary, buffers.mask.view(torch.uint8))
    if direction == "forward":
        return [
            lambda qkv=qkv: attend(qkv, *inputs, shape.kernel, tiling)  # type: ignore[misc]
            for qkv in buffers.qkv
        ]
    return [
        lambda qkv=qkv, grad=grad: attend_backward(  # type: ignore[misc]
            qkv, grad, inputs, shape=shape.kernel, tiling=tiling
        )
        for qkv, grad in zip(buffers.qkv, buffers.out_grad, strict=True)
    ]


def split_and_turn(shape: Shape, qkv: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys (turned, in their own type) and values, [q*n, b, a, d] each."""
    mixed = qkv.view(*qkv.shape[:2], shape.heads, 3 * shape.head_dim)
    query, key, value = mixed.split(shape.head_dim, dim=-1)
    rows = rotary.to(qkv.dtype).repeat_interleave(shape.columns, dim=1)[:, :, None, None]
    half = shape.kernel.rotated // 2

    def turn(x: Tensor) -> Tensor:
        part, rest = x[..., : 2 * half], x[..., 2 * half :]
        swapped = torch.cat((-part[..., half:], part[..., :half]), dim=-1)
        return torch.cat((part * rows[0] + swapped * rows[1], rest), dim=-1)

    return turn(query), turn(key), value


def plain_torch(shape: Shape, buffers: Buffers, qkv: Tensor) -> Tensor:
    """Attend as the model does without kernels."""
    import megatron.core  # noqa: F401  late: --help needs no Megatron

    from bt_megatron.model.attention import FoldedAttention

    stack: Any = SimpleNamespace(
        fold_positions=shape.positions, bidirectional=False, attention_dropout=0.0
    )
    return FoldedAttention(stack)(*split_and_turn(shape, qkv, buffers.rotary), buffers.mask)


def fused_torch(shape: Shape, buffers: Buffers, qkv: Tensor) -> Tensor:
    """Attend with scaled_dot_product_attention, without the mask, which its fast kernels lack."""
    query, key, value = (
        x.view(shape.positions, shape.columns, shape.heads, -1).permute(1, 2, 0, 3)
        for x in split_and_turn(shape, qkv, buffers.rotary)
    )
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    return out.permute(2, 0, 1, 3).reshape(*qkv.shape[:2], -1)


Implementation = Callable[[Shape, Buffers, Tensor], Tensor]
OTHERS: dict[str, Implementation] = {"torch": plain_torch, "sdpa": fused_torch}


def other_times(
    attention: Implementation, shape: Shape, buffers: Buffers, clock: Clock
) -> dict[str, float]:
    """Return seconds by direction of another implementation.

    Raises:
        RuntimeError: it fails, or is wrong, at this shape.
    """
    qkv = buffers.qkv[0].detach().requires_grad_()
    out = attention(shape, buffers, qkv)
    mask = buffers.mask.view(torch.uint8) if attention is plain_torch else None
    tiling = choose_tiling(shape.positions, shape.head_dim, backward=False)
    ours = attend(buffers.qkv[0], buffers.rotary, mask, shape.kernel, tiling).float()
    difference = ((out.detach().float() - ours).norm() / ours.norm()).item()
    if not difference < AGREEMENT:
        raise RuntimeError(f"wrong: differs by {difference:.2g} of the norm")
    del ours

    def backward() -> None:
        torch.autograd.grad(out, qkv, buffers.out_grad[0], retain_graph=True)

    def forward() -> None:
        with torch.no_grad():
            attention(shape, buffers, qkv)

    return {"forward": clock.seconds([forward]), "backward": clock.seconds([backward])}


def measure(shape: Shape, dtype: torch.dtype, clock: Clock, copy: float) -> Iterator[Row]:
    """Yield the rows of one shape."""
    buffers = make_buffers(shape, dtype)

    def row(implementation: str, direction: str, seconds: float, **detail: Any) -> Row:
        rate = shape.bytes_moved(direction, dtype.itemsize) / seconds
        what = f"{implementation:6} {direction:8} {asdict(shape)}"
        say(f"{what}: {seconds * 1e6:8.1f} us, {rate / copy:.3f} of a copy")
        return Row(
            case=CASE,
            metric="bandwidth_fraction",
            value=rate / copy,
            unit="of copy bandwidth",
            detail={
                **asdict(shape),
                "dtype": str(dtype).removeprefix("torch."),
                "direction": direction,
                "implementation": implementation,
                "microseconds": seconds * 1e6,
                **detail,
            },
        )

    for direction in ("forward", "backward"):
        backward = direction == "backward"
        tiling = choose_tiling(shape.positions, shape.head_dim, backward=backward)
        seconds = clock.seconds(kernel_calls(shape, buffers, direction, tiling))
        yield row("kernel", direction, seconds, tiling=asdict(tiling))
    for name, attention in OTHERS.items():
        try:
            times = other_times(attention, shape, buffers, clock)
        except RuntimeError as error:  # out of memory too
            say(f"{name:6} n/a at {asdict(shape)}: {str(error).splitlines()[0]}")
            continue
        for direction, seconds in times.items():
            yield row(name, direction, seconds)


def tune(shape: Shape, dtype: torch.dtype, clock: Clock, copy: float) -> None:
    """Print the bandwidth of each candidate, best last, and the line of the table."""
    from triton.runtime.errors import OutOfResources

    buffers = make_buffers(shape, dtype)
    for direction in ("forward", "backward"):
        moved = shape.bytes_moved(direction, dtype.itemsize)
        found = []
        backward = direction == "backward"
        for tiling in candidate_tilings(shape.positions, shape.head_dim, backward=backward):
            calls = kernel_calls(shape, buffers, direction, tiling)
            try:
                found.append((moved / clock.seconds(calls) / copy, tiling))
            except OutOfResources as error:
                say(f"  {direction} {tiling}: {error}")
        found.sort(key=lambda pair: pair[0])
        for fraction, tiling in found:
            say(f"  {direction} {fraction:.3f} {tiling}")
        line = f"({shape.positions}, {shape.head_dim}): {found[-1][1]},"
        say(f"_{direction.upper()} {line}  # {found[-1][0]:.3f} of a copy")


def chosen_shapes(only: str | None) -> list[Shape]:
    """Return the shapes of one q and d, written QxD, or all.

    Raises:
        ConfigError: no shape is of this q and d.
    """
    if only is None:
        return list(SHAPES)
    found = [shape for shape in SHAPES if f"{shape.positions}x{shape.head_dim}" == only]
    if not found:
        known = sorted({f"{shape.positions}x{shape.head_dim}" for shape in SHAPES})
        raise ConfigError(f"--only {only}: no such shape. Choose from {', '.join(known)}.")
    return found


def say(text: str) -> None:
    """Print at once."""
    print(text, flush=True)  # noqa: T201


def run(arguments: argparse.Namespace) -> None:
    """Measure what the command line asks for.

    Raises:
        ConfigError: no such shape.
        BtError: there is no GPU, or the file cannot be written.
    """
    shapes = chosen_shapes(arguments.only)
    if not torch.cuda.is_available():
        raise BtError("bench_token_attention: no CUDA device. Start it on a machine with a GPU.")
    dtype = getattr(torch, arguments.dtype)
    clock = Clock(arguments.repetitions)
    copy = clock.copy_bandwidth()
    say(f"copy: {copy / 1e12:.3f} TB/s read and written")
    rows = [Row(case=CASE, metric="copy_bandwidth", value=copy, unit="bytes/s")]
    for shape in shapes:
        if arguments.tune:
            say(f"{asdict(shape)}")
            tune(shape, dtype, clock, copy)
        else:
            rows.extend(measure(shape, dtype, clock, copy))
    if arguments.json is not None and not arguments.tune:
        write_benchmark(arguments.json, rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench_token_attention",
        description="Bandwidth of the token attention kernels over that of a copy.",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    parser.add_argument("--tune", action="store_true", help="try every tile, print the best")
    parser.add_argument("--only", metavar="QxD", help="shapes of one q and d, e.g. 5x64")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--repetitions", type=int, default=30, metavar="N")
    try:
        run(parser.parse_args(argv))
    except BtError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
