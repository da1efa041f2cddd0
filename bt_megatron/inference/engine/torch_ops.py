# SPDX-License-Identifier: Apache-2.0
"""The operations between products in plain torch: for CPUs, and what the kernels must equal.

`triton_ops` has the same functions. Shapes: shapes.py.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from bt_megatron.inference.engine.cache import PAGE_POSITIONS
from bt_megatron.inference.engine.rows import TOP_LOGPROBS, Prompts, Rows, Whole
from bt_megatron.inference.engine.sampling import draw
from bt_megatron.inference.engine.shapes import StackShape


def norm(x: Tensor, shift: Tensor, shape: StackShape, out_type: torch.dtype) -> Tensor:
    """Normalise x + shift without weights.

    Args:
        x: [M, h].
        shift: [h] float32.
        shape: says which norm.
        out_type: of the result.

    Returns:
        [M, h], contiguous.
    """
    x = x.float() + shift
    if shape.layernorm:
        x = x - x.mean(-1, keepdim=True)
    return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + shape.epsilon)).to(out_type)


def is_narrow(x: Tensor, shape: StackShape) -> bool:
    """Tell whether rows are so few that products only read weights; a GPU has kernels for that."""
    return False


def activate(inputs: Tensor, out: Tensor, shape: StackShape) -> None:
    """Apply the activation: [M, f] (swiglu: gate and up, [M, 2 f]) -> out [M, f]."""
    inputs = inputs.float()
    if shape.activation == "swiglu":
        gate, up = inputs.chunk(2, dim=-1)
        out.copy_(F.silu(gate) * up)
    else:
        out.copy_(F.gelu(inputs) if shape.activation == "gelu" else F.relu(inputs))


def _rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    # [..., d] with tables [..., d/2]
    first, second = states.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([first * cos - second * sin, second * cos + first * sin], -1).flatten(-2)


def _split(mixed: Tensor, shape: StackShape) -> tuple[Tensor, Tensor, Tensor]:
    # [..., (a + 2 g) d] -> [..., a, d] and twice [..., g, d], float32
    heads = mixed.float().unflatten(-1, (-1, shape.head_dim))
    query, key, value = heads.split([shape.heads, shape.groups, shape.groups], dim=-2)
    return query, key, value


def attend_in_block(
    mixed: Tensor, past: Tensor, first: int, angles: Tensor, shape: StackShape,
    out: Tensor,
) -> None:  # fmt: skip
    """Attend causally inside of blocks, and remember the keys and values of new positions.

    Args:
        mixed: [B * new, (a + 2 g) d], the new positions of a row one after the other.
        past: [2 (keys, values), q, B, g * d]; positions below `first` are filled.
        first: number of positions before the new ones.
        angles: cosines and sines [2, positions, d/2].
        shape: of the stack.
        out: [B * new, a * d], written.
    """
    keys, values = past
    rows = past.shape[2]
    query, key, value = _split(mixed.view(rows, -1, mixed.shape[-1]), shape)  # [B, new, a, d]
    end = first + query.shape[1]
    cos, sin = angles[:, first:end, None]
    query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
    keys[first:end] = key.transpose(0, 1).flatten(2).to(keys.dtype)
    values[first:end] = value.transpose(0, 1).flatten(2).to(values.dtype)
    known = [part[:end].float().unflatten(-1, (-1, shape.head_dim)) for part in (keys, values)]
    key, value = (part.permute(1, 2, 0, 3) for part in known)  # [B, g, keys, d]
    position = torch.arange(end)
    visible = position <= position[first:, None]
    attended = _attend(query.transpose(1, 2), key, value, visible)
    out.copy_(attended.transpose(1, 2).reshape(out.shape))


def _attend(query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
    # Query [B, a, n, d], key and value [B, g, keys, d] -> [B, a, n, d]
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=visible, enable_gqa=query.shape[1] != key.shape[1]
    )


def attend_cached(
    mixed: Tensor, cache: Tensor, rows: Rows, angles: Tensor, shape: StackShape,
    out: Tensor,
) -> None:  # fmt: skip
    """Append one position to each row's cache and attend to all of it.

    Args:
        mixed: [B, (a + 2 g) d].
        cache: of this layer, [pages, 2, g, P, d]; written at each living row's length.
        rows: lengths and pages; lengths are not changed.
        angles: cosines and sines [2, positions, d/2].
        shape: of the stack.
        out: [B, a * d], written.
    """
    alive = rows.whole[:, Whole.ALIVE].bool()
    length = rows.whole[:, Whole.LENGTH].long() * alive
    query, key, value = _split(mixed, shape)
    cos, sin = angles[:, length, None]
    query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
    page = rows.table.gather(1, (length // PAGE_POSITIONS)[:, None])[:, 0].long() * alive
    new = torch.stack([key, value], dim=1)  # [B, 2, g, d]
    cache[page, :, :, length % PAGE_POSITIONS] = _storable(new, cache.dtype)
    longest = int(length.max()) + 1
    pages = rows.table[:, : -(-longest // PAGE_POSITIONS)].long()
    known = cache[pages].float().movedim(1, 3).flatten(3, 4)  # [B, 2, g, positions, d]
    keys, values = known[:, :, :, :longest].unbind(1)
    visible = torch.arange(longest) <= length[:, None, None, None]
    out.copy_(_attend(query[:, :, None], keys, values, visible).reshape(out.shape))


def _storable(states: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype == torch.float8_e4m3fn:
        states = states.clamp(-448.0, 448.0)
    return states.to(dtype)


def rotate_prompts(mixed: Tensor, angles: Tensor, shape: StackShape) -> None:
    """Rotate queries and keys in place: mixed [B, n, (a + 2 g) d], positions 0..n-1."""
    query, key, _ = _split(mixed, shape)
    cos, sin = angles[:, : mixed.shape[1], None]
    end = shape.attended + shape.groups * shape.head_dim
    mixed[..., : shape.attended] = _rotate(query, cos, sin).flatten(2).to(mixed.dtype)
    mixed[..., shape.attended : end] = _rotate(key, cos, sin).flatten(2).to(mixed.dtype)


def store_prompts(
    mixed: Tensor, cache: Tensor, prompts: Prompts, angles: Tensor,
    shape: StackShape,
) -> None:  # fmt: skip
    """Rotate queries and keys in place and store keys and values.

    Args:
        mixed: [B, n, (a + 2 g) d], positions 0..n-1 of each prompt.
        cache: of this layer, [pages, 2, g, P, d]; written below each prompt's length.
        prompts: lengths and pages.
        angles: cosines and sines [2, positions, d/2].
        shape: of the stack.
    """
    rotate_prompts(mixed, angles, shape)
    _, key, value = _split(mixed, shape)
    place = torch.arange(mixed.shape[1])
    row, position = (place < prompts.lengths[:, None]).nonzero(as_tuple=True)
    page = prompts.table[row, position // PAGE_POSITIONS].long()
    new = torch.stack([key, value], dim=2)[row, position]  # [positions, 2, g, d]
    cache[page, :, :, position % PAGE_POSITIONS] = _storable(new, cache.dtype)


def sample(logits: Tensor, rows: Rows, place: int, *, plain: bool) -> None:
    """Draw a token for each row, and keep count.

    Args:
        logits: [B, V].
        rows: written: token and log-probability at `place`, and what they change.
        place: of the token in the block.
        plain: all rows take the best token and nobody wants its probability: faster on a GPU.
    """
    whole = rows.whole
    token, logprob = draw(logits.float(), rows)
    rows.tokens[:, place] = token.int()
    rows.logprobs[:, place] = logprob
    alive = whole[:, Whole.ALIVE].clone()
    index = token[:, None].long()
    rows.seen.scatter_(1, index, rows.seen.gather(1, index) | alive[:, None].to(torch.uint8))
    whole[:, Whole.DRAWN] += alive
    whole[:, Whole.REMAINING] -= alive
    ended = (token == whole[:, Whole.END]) | (whole[:, Whole.REMAINING] <= 0)
    whole[:, Whole.ALIVE] = alive * ~ended


def keep_best(logits: Tensor, rows: Rows, place: int) -> None:
    """Keep the most likely tokens of each row: logits [B, V], at `place` in the block."""
    best = logits.float().log_softmax(-1).topk(TOP_LOGPROBS, dim=-1)
    rows.top_ids[:, place] = best.indices.int()
    rows.top_logprobs[:, place] = best.values
