# SPDX-License-Identifier: Apache-2.0
"""Self-attention of the token decoder on a GPU: very many sequences of a few positions.

Reads the mixed projection of queries, keys and values as Megatron's linear layer
leaves it, turns queries and keys by their rotary angles, attends inside each block,
and hands the gradient back in the same layout. Nothing in between is written to memory,
and the backward pass computes the weights anew. Sums have a fixed order, so the same
input gives the same bits.

The numbers are those of `FoldedAttention` (bt_megatron/model/attention.py), with
products and softmax in float32. Letters of shapes: bt_megatron/model/shapes.py.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bt_megatron.errors import ConfigError
from bt_megatron.kernels.token_attention_tiled import tiled_backward, tiled_forward
from bt_megatron.kernels.token_attention_tiling import (
    HEAD_DIMS,
    MAX_POSITIONS,
    KernelShape,
    Tiling,
    choose_tiling,
)
from bt_megatron.kernels.token_attention_unrolled import unrolled_backward, unrolled_forward

LAUNCH_OPTIONS: dict[str, dict[str, int]] = {
    "unrolled": {},
    # num_stages: loops over the heads of a group are too short to load ahead.
    # maxnreg: unasked, ptxas gives up on some of them and spills everything but 32 registers.
    "tiled": {"num_stages": 1, "maxnreg": 255},
}
"""How Triton compiles each kind of kernel."""
_TYPES = (torch.bfloat16, torch.float16, torch.float32)


def token_attention(
    qkv: Tensor,
    *,
    positions: int,
    heads: int,
    groups: int,
    rotary: Tensor | None = None,
    mask: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = True,
) -> Tensor:
    """Attend within blocks; differentiable in `qkv`.

    Args:
        qkv: [q*n, b, (a + 2*groups)*d] mixed projection with row = position * n + block.
            For each group: its a/groups queries, its key, its value, each d wide.
        positions: q, at most 64.
        heads: a, of this rank.
        groups: of this rank, a divisor of `heads`.
        rotary: [2, q, rotated] float32 cosines and sines of each position's angles,
            `torch.stack((angles.cos(), angles.sin()))` of [q, rotated] as `rotary_angles`
            makes them: the second half of the angles repeats the first. The first
            `rotated` dimensions of each head are turned. None: nothing is.
        mask: [q, n*b] bool with column = block * b + batch, False where a position is
            padding, as a key. A query that sees no key averages over all keys of its
            block. None: all are seen.
        softmax_scale: factor of the scores; none: d ** -0.5.
        causal: whether a position sees only itself and earlier ones.

    Returns:
        [q*n, b, a*d].

    Raises:
        ConfigError: a width of heads or a number of positions the kernels are not made for.

    Comm: none.
    """
    assert qkv.dim() == 3, f"expected [q*n, b, width], got {list(qkv.shape)}"
    assert heads % groups == 0, f"{heads} heads do not share {groups} groups evenly"
    head_dim, rest = divmod(qkv.shape[-1], heads + 2 * groups)
    assert rest == 0, f"{qkv.shape[-1]} is not (a + 2*groups) * d of {heads=}, {groups=}"
    _require_supported(positions, head_dim)
    shape = KernelShape(
        positions=positions,
        heads=heads,
        groups=groups,
        head_dim=head_dim,
        rotated=0 if rotary is None else rotary.shape[-1],
        scale=head_dim**-0.5 if softmax_scale is None else softmax_scale,
        causal=causal,
        rows=0,
    )
    _require_fitting(qkv, rotary, mask, shape)
    return _TokenAttention.apply(qkv, rotary, mask, shape)


def _require_supported(positions: int, head_dim: int) -> None:
    if head_dim not in HEAD_DIMS:
        raise ConfigError(
            f"model.token_decoder: heads are {head_dim} wide, but the token attention kernel is "
            f"made for {', '.join(map(str, HEAD_DIMS))}. Change num_attention_heads."
        )
    if not 1 <= positions <= MAX_POSITIONS:
        raise ConfigError(
            f"model.token_decoder: {positions} positions per block, but the token attention "
            f"kernel takes 1 to {MAX_POSITIONS}. Change block_length or prefix_length."
        )


def _require_fitting(
    qkv: Tensor, rotary: Tensor | None, mask: Tensor | None, shape: KernelShape
) -> None:
    assert qkv.dtype in _TYPES, f"no kernel for {qkv.dtype}"
    assert qkv.shape[0] % shape.positions == 0, f"{qkv.shape[0]} rows of {shape.positions=}"
    columns = qkv.shape[0] // shape.positions * qkv.shape[1]
    assert columns * shape.groups < 2**31 - 2**10, "sequences are counted in 32 bits"
    if rotary is not None:
        assert rotary.shape[:2] == (2, shape.positions), f"rotary is {list(rotary.shape)}"
        assert rotary.dtype == torch.float32, f"rotary is {rotary.dtype}"
        assert 0 < shape.rotated <= shape.head_dim, f"{shape.rotated=} of {shape.head_dim=}"
        assert shape.rotated % 2 == 0, f"{shape.rotated=} is odd"
        assert rotary.device == qkv.device, "rotary is on another device"
    if mask is not None:
        assert mask.shape == (shape.positions, columns), f"mask is {list(mask.shape)}"
        assert mask.dtype == torch.bool, f"mask is {mask.dtype}"
        assert mask.device == qkv.device, "mask is on another device"


class _TokenAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, rotary: Tensor | None, mask: Tensor | None, shape: KernelShape
    ) -> Tensor:
        qkv = qkv.contiguous()
        rotary = None if rotary is None else rotary.contiguous()
        mask = None if mask is None else mask.contiguous().view(torch.uint8)
        ctx.save_for_backward(qkv, rotary, mask)
        ctx.shape = shape
        tiling = choose_tiling(shape.positions, shape.head_dim, backward=False)
        return attend(qkv, rotary, mask, shape, tiling)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, out_grad: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        qkv, rotary, mask = ctx.saved_tensors
        tiling = choose_tiling(ctx.shape.positions, ctx.shape.head_dim, backward=True)
        grad = attend_backward(
            qkv, out_grad.contiguous(), (rotary, mask), shape=ctx.shape, tiling=tiling
        )
        return grad, None, None, None


def attend(
    qkv: Tensor,
    rotary: Tensor | None,
    mask: Tensor | None,
    shape: KernelShape,
    tiling: Tiling,
) -> Tensor:
    """Run the forward kernel.

    Args:
        qkv: [q*n, b, (a + 2*groups)*d], contiguous.
        rotary: [2, q, rotated] float32, contiguous, or None.
        mask: [q, n*b] uint8, contiguous, or None.
        shape: of the attention; its `rows` are those of `tiling`.
        tiling: how the work is cut.

    Returns:
        [q*n, b, a*d].

    Comm: none.
    """
    out = qkv.new_empty(*qkv.shape[:2], shape.heads * shape.head_dim)
    _launch((unrolled_forward, tiled_forward), (qkv, out, rotary, mask), shape, tiling)
    return out


def attend_backward(
    qkv: Tensor,
    out_grad: Tensor,
    inputs: tuple[Tensor | None, Tensor | None],
    *,
    shape: KernelShape,
    tiling: Tiling,
) -> Tensor:
    """Run the backward kernel.

    Args:
        qkv: as for `attend`.
        out_grad: [q*n, b, a*d], contiguous.
        inputs: rotary and mask as for `attend`.
        shape: as for `attend`.
        tiling: how the work is cut.

    Returns:
        [q*n, b, (a + 2*groups)*d], the gradient of qkv.

    Comm: none.
    """
    grad = torch.empty_like(qkv)
    kernels = (unrolled_backward, tiled_backward)
    _launch(kernels, (qkv, out_grad, grad, *inputs), shape, tiling)
    return grad


def _launch(
    kernels: tuple[Any, Any],
    tensors: tuple[Tensor | None, ...],
    shape: KernelShape,
    tiling: Tiling,
) -> None:
    """Launch the unrolled or the tiled kernel of a pair on the tensors' device and stream."""
    qkv = tensors[0]
    assert qkv is not None, "the projection comes first"
    columns = qkv.shape[0] // shape.positions * qkv.shape[1]
    sequences = columns * shape.groups
    unrolled, tiled = kernels
    options = {"num_warps": tiling.warps, **LAUNCH_OPTIONS[tiling.kind]}
    with torch.cuda.device_of(qkv):  # Triton launches on the current device
        if tiling.kind == "unrolled":
            grid = (-(-sequences // tiling.rows),)
            compiled = replace(shape, rows=tiling.rows)
            unrolled[grid](*tensors, columns, compiled, **options)
        else:
            grid = (-(-sequences // (tiling.rows // shape.positions)),)
            compiled = replace(shape, rows=tiling.rows, positions=0)
            tiled[grid](*tensors, columns, shape.positions, compiled, **options)
