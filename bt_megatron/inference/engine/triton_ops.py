# SPDX-License-Identifier: Apache-2.0
"""The operations between products on a GPU; what they do is said in torch_ops."""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from bt_megatron.inference.engine.block_attention_kernel import BlockShape, block_attention_kernel
from bt_megatron.inference.engine.cache import PAGE_POSITIONS
from bt_megatron.inference.engine.cached_attention_kernel import (
    CacheShape,
    cached_attention_kernel,
    grouped_attention_kernel,
    join_kernel,
    prompt_kernel,
)
from bt_megatron.inference.engine.elementwise_kernels import activation_kernel, norm_kernel
from bt_megatron.inference.engine.linear import Linear
from bt_megatron.inference.engine.narrow_kernels import (
    NarrowShape,
    narrow_first_kernel,
    narrow_last_kernel,
)
from bt_megatron.inference.engine.rows import Prompts, Rows
from bt_megatron.inference.engine.sampling_kernel import (
    SamplingShape,
    greedy_kernel,
    sampling_kernel,
)
from bt_megatron.inference.engine.shapes import StackShape
from bt_megatron.inference.engine.torch_ops import keep_best  # noqa: F401  the same on a GPU

ACTIVATION_TILE = 1024
BLOCK_ELEMENTS = 1024
"""Elements of a tile of block attention, [rows, d]."""


@dataclass(frozen=True, slots=True)
class CacheTiling:
    """How a program streams the cache."""

    tile: int
    """Positions read at a time."""
    warps: int
    stages: int


CACHE_TILINGS = {
    (64, 2): CacheTiling(64, 4, 1),
    (128, 2): CacheTiling(32, 4, 1),
    (64, 1): CacheTiling(64, 4, 1),
    (128, 1): CacheTiling(32, 4, 1),
}
"""By d and bytes of a number, measured on an H100 (tools.bench_inference --tune)."""
NARROW_ROWS = 4
NARROW_FIRST, NARROW_LAST = (4, 1024), (2, 2048)
"""Outputs and inputs of a tile, of the first and the last product of a layer."""
NARROW_FIRST_TILES: dict[int, tuple[int, int]] = {}
NARROW_LAST_TILES: dict[int, tuple[int, int]] = {}
"""By number of inputs, where something else was measured to be faster."""
FEW_ROWS = 32
VOCAB_TILE, FEW_VOCAB_TILE = (4096, 8), (16_384, 16)
"""Logits read at a time and warps: many rows share a multiprocessor, a few do not."""
ENOUGH_PROGRAMS = 512
"""Programs that keep an H100 (132 multiprocessors) reading at full speed."""
MAX_SPLITS = 16


def norm(x: Tensor, shift: Tensor, shape: StackShape, out_type: torch.dtype) -> Tensor:
    """As torch_ops.norm; rows of x may be apart."""
    out = torch.empty(x.shape, dtype=out_type, device=x.device)
    tile = triton.next_power_of_2(shape.width)
    norm_kernel[(x.shape[0],)](
        x, shift, out, x.stride(0), shape.width, shape.epsilon, shape.layernorm, tile,
        num_warps=max(1, min(8, tile // 256)),
    )  # fmt: skip
    return out


def is_narrow(x: Tensor, shape: StackShape) -> bool:
    """Tell whether rows are so few that products only read weights."""
    return x.shape[0] <= NARROW_ROWS and shape.parallel and shape.activation != "swiglu"


def narrow_first(
    x: Tensor, shift: Tensor, product: Linear, shape: StackShape, joined: Tensor | None
) -> Tensor:
    """Normalise and multiply a few rows.

    Args:
        x: [M, h].
        shift: [h] float32, see norm().
        product: [n, h].
        shape: says which norm and activation.
        joined: [M, a d + f]: gets what comes after queries, keys and values, activated.
            None: all of the product is returned.

    Returns:
        [M, (a + 2 g) d] or [M, n].
    """
    outputs, inputs = product.weight.shape
    plain = outputs if joined is None else shape.mixed
    out = torch.empty(x.shape[0], plain, dtype=x.dtype, device=x.device)
    compiled_for = _narrow_shape(
        product,
        shape,
        x.stride(0),
        plain=plain,
        joined_stride=0 if joined is None else joined.stride(0),
        tile=NARROW_FIRST_TILES.get(inputs, NARROW_FIRST),
    )
    grid = (x.shape[0], triton.cdiv(outputs, compiled_for.tile))
    narrow_first_kernel[grid](
        x, shift, product.weight, product.sums, product.bias, out, joined, compiled_for
    )
    return out


def narrow_last(x: Tensor, joined: Tensor, product: Linear) -> None:
    """Add joined [M, k] W^T to x [M, h] in place, for a few rows."""
    compiled_for = _narrow_shape(
        product,
        None,
        x.stride(0),
        plain=0,
        joined_stride=joined.stride(0),
        tile=NARROW_LAST_TILES.get(joined.shape[1], NARROW_LAST),
    )
    grid = (x.shape[0], triton.cdiv(x.shape[1], compiled_for.tile))
    narrow_last_kernel[grid](x, joined, product.weight, product.sums, compiled_for)


def _narrow_shape(
    product: Linear, shape: StackShape | None, x_stride: int, *, plain: int, joined_stride: int,
    tile: tuple[int, int],
) -> NarrowShape:  # fmt: skip
    outputs, inputs = product.weight.shape
    return NarrowShape(
        inputs=inputs,
        outputs=outputs,
        plain=plain,
        activation="" if shape is None else shape.activation,
        layernorm=shape is not None and shape.layernorm,
        epsilon=0.0 if shape is None else shape.epsilon,
        x_stride=x_stride,
        out_stride=plain,
        joined_stride=joined_stride,
        joined_offset=0 if shape is None else shape.attended,
        tile=tile[0],
        depth=min(tile[1], triton.next_power_of_2(inputs)),
    )


def activate(inputs: Tensor, out: Tensor, shape: StackShape) -> None:
    """As torch_ops.activate."""
    grid = (inputs.shape[0], triton.cdiv(shape.ffn, ACTIVATION_TILE))
    activation_kernel[grid](
        inputs, out, inputs.stride(0), out.stride(0), shape.ffn, shape.activation, ACTIVATION_TILE
    )


def attend_in_block(
    mixed: Tensor, past: Tensor, first: int, angles: Tensor, shape: StackShape, out: Tensor
) -> None:
    """As torch_ops.attend_in_block."""
    count = past.shape[2]
    compiled_for = BlockShape(
        first=first,
        new=mixed.shape[0] // count,
        positions=past.shape[1],
        heads=shape.heads,
        groups=shape.groups,
        width=shape.head_dim,
        scale=shape.head_dim**-0.5,
        mixed_stride=mixed.stride(0),
        out_stride=out.stride(0),
        angle_positions=angles.shape[1],
        rows=max(1, BLOCK_ELEMENTS // shape.head_dim),
    )
    grid = (triton.cdiv(count * shape.groups, compiled_for.rows),)
    block_attention_kernel[grid](mixed, past, out, angles, count, compiled_for)


def attend_cached(
    mixed: Tensor, cache: Tensor, rows: Rows, angles: Tensor, shape: StackShape, out: Tensor
) -> None:
    """As torch_ops.attend_cached."""
    count = mixed.shape[0]
    table_width = rows.table.shape[1]
    tiling = CACHE_TILINGS.get((shape.head_dim, cache.itemsize), CacheTiling(32, 4, 1))
    tiles = triton.cdiv(table_width * PAGE_POSITIONS, 2 * tiling.tile)
    splits = max(1, min(ENOUGH_PROGRAMS // (count * shape.groups), MAX_SPLITS, tiles))
    strides = (mixed.stride(0), out.stride(0), table_width, angles.shape[1])
    compiled_for = _cache_shape(strides, shape, splits, tiling.tile, tiling.stages)
    size = (count, shape.heads, splits, shape.head_dim + 2) if splits > 1 else (1,)
    part = torch.empty(size, dtype=torch.float32, device=mixed.device)
    kernel = cached_attention_kernel if shape.heads == shape.groups else grouped_attention_kernel
    kernel[(shape.groups, count, splits)](
        mixed, cache, rows.table, rows.whole, angles, out, part, compiled_for,
        num_warps=tiling.warps,
    )  # fmt: skip
    if splits > 1:
        padded = triton.next_power_of_2(splits)
        join_kernel[(count, shape.heads)](part, out, padded, compiled_for, num_warps=1)


def _cache_shape(
    strides: tuple[int, int, int, int], shape: StackShape, splits: int, tile: int, stages: int = 1
) -> CacheShape:
    mixed_stride, out_stride, table_width, angle_positions = strides
    return CacheShape(
        heads=shape.heads,
        groups=shape.groups,
        width=shape.head_dim,
        scale=shape.head_dim**-0.5,
        positions=PAGE_POSITIONS,
        mixed_stride=mixed_stride,
        out_stride=out_stride,
        table_width=table_width,
        angle_positions=angle_positions,
        splits=splits,
        tile=tile,
        stages=stages,
    )


def rotate_prompts(mixed: Tensor, angles: Tensor, shape: StackShape) -> None:
    """As torch_ops.rotate_prompts."""
    _prompts(mixed, None, None, angles, shape)


def store_prompts(
    mixed: Tensor, cache: Tensor, prompts: Prompts, angles: Tensor, shape: StackShape
) -> None:
    """As torch_ops.store_prompts."""
    _prompts(mixed, cache, prompts, angles, shape)


def _prompts(
    mixed: Tensor, cache: Tensor | None, prompts: Prompts | None, angles: Tensor, shape: StackShape
) -> None:
    table, lengths = None, None
    if prompts is not None:
        table, lengths = prompts.table.contiguous(), prompts.lengths.contiguous()
    heads = triton.next_power_of_2(shape.heads + shape.groups)
    width = 0 if table is None else table.shape[1]
    compiled_for = _cache_shape((mixed.stride(1), 0, width, angles.shape[1]), shape, 1, heads)
    grid = (mixed.shape[0] * mixed.shape[1],)
    prompt_kernel[grid](mixed, cache, table, lengths, angles, mixed.shape[1], compiled_for)


def sample(logits: Tensor, rows: Rows, place: int, *, plain: bool) -> None:
    """As torch_ops.sample; `seen` is kept for rows with a penalty only."""
    count, vocab = logits.shape
    tile, warps = FEW_VOCAB_TILE if count <= FEW_ROWS else VOCAB_TILE
    if not plain:  # needs three times as many registers
        tile, warps = tile // 2, max(1, warps // 2)
    tile = min(tile, triton.next_power_of_2(vocab))
    compiled_for = SamplingShape(vocab, logits.stride(0), rows.tokens.shape[1], tile)
    if plain:
        greedy_kernel[(count,)](
            logits, rows.whole, rows.tokens, place, compiled_for, num_warps=warps
        )
        return
    sampling_kernel[(count,)](
        logits, rows.whole, rows.real, rows.tokens, rows.logprobs, rows.seen, place, compiled_for,
        num_warps=warps,
    )  # fmt: skip
