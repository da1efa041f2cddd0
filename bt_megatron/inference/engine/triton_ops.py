# SPDX-License-Identifier: Apache-2.0
"""The operations between products on a GPU; what they do is said in torch_ops."""

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
from bt_megatron.inference.engine.sampling_kernel import SamplingShape, sampling_kernel
from bt_megatron.inference.engine.shapes import StackShape
from bt_megatron.inference.engine.torch_ops import keep_best  # noqa: F401  the same on a GPU

ACTIVATION_TILE = 1024
BLOCK_ELEMENTS = 1024
"""Elements of a tile of block attention, [rows, d]."""
CACHE_TILE = 64
NARROW_ROWS = 4
NARROW_TILES = ((4, 1024), (2, 2048))
"""Outputs and inputs of a tile, of the first and the last product of a layer."""
VOCAB_TILE = 4096
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
        product, shape, x.stride(0), plain=plain,
        joined_stride=0 if joined is None else joined.stride(0), tile=NARROW_TILES[0],
    )  # fmt: skip
    grid = (x.shape[0], triton.cdiv(outputs, compiled_for.tile))
    narrow_first_kernel[grid](
        x, shift, product.weight, product.sums, product.bias, out, joined, compiled_for
    )
    return out


def narrow_last(x: Tensor, joined: Tensor, product: Linear) -> None:
    """Add joined [M, k] W^T to x [M, h] in place, for a few rows."""
    compiled_for = _narrow_shape(
        product, None, x.stride(0), plain=0, joined_stride=joined.stride(0), tile=NARROW_TILES[1]
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
    tiles = triton.cdiv(table_width * PAGE_POSITIONS, 2 * CACHE_TILE)
    splits = max(1, min(ENOUGH_PROGRAMS // (count * shape.groups), MAX_SPLITS, tiles))
    compiled_for = _cache_shape(mixed.stride(0), out.stride(0), table_width, angles, shape, splits)
    size = (count, shape.heads, splits, shape.head_dim + 2) if splits > 1 else (1,)
    part = torch.empty(size, dtype=torch.float32, device=mixed.device)
    kernel = cached_attention_kernel if shape.heads == shape.groups else grouped_attention_kernel
    kernel[(count, shape.groups, splits)](
        mixed, cache, rows.table, rows.whole, angles, out, part, compiled_for
    )
    if splits > 1:
        padded = triton.next_power_of_2(splits)
        join_kernel[(count, shape.heads)](part, out, padded, compiled_for, num_warps=1)


def _cache_shape(
    mixed_stride: int, out_stride: int, table_width: int, angles: Tensor, shape: StackShape,
    splits: int, tile: int = CACHE_TILE,
) -> CacheShape:  # fmt: skip
    return CacheShape(
        heads=shape.heads,
        groups=shape.groups,
        width=shape.head_dim,
        scale=shape.head_dim**-0.5,
        positions=PAGE_POSITIONS,
        mixed_stride=mixed_stride,
        out_stride=out_stride,
        table_width=table_width,
        angle_positions=angles.shape[1],
        splits=splits,
        tile=tile,
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
    compiled_for = _cache_shape(mixed.stride(1), 0, width, angles, shape, 1, heads)
    grid = (mixed.shape[0] * mixed.shape[1],)
    prompt_kernel[grid](mixed, cache, table, lengths, angles, mixed.shape[1], compiled_for)


def sample(logits: Tensor, rows: Rows, place: int) -> None:
    """As torch_ops.sample; `seen` is kept for rows with a penalty only."""
    vocab = logits.shape[1]
    tile = min(VOCAB_TILE, triton.next_power_of_2(vocab))
    compiled_for = SamplingShape(vocab, logits.stride(0), rows.tokens.shape[1], tile)
    sampling_kernel[(logits.shape[0],)](
        logits, rows.whole, rows.real, rows.tokens, rows.logprobs, rows.seen, place, compiled_for,
        num_warps=max(1, min(8, tile // 128)),
    )  # fmt: skip
