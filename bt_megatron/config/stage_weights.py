# SPDX-License-Identifier: Apache-2.0
"""Weights of a pipeline stage as one tensor-parallel process holds them, and their buckets.

The order is that in which the modules of `model/` register them. Megatron's data-parallel
wrapper lays gradients out in the reverse of it and cuts them into buckets there
(`_compute_per_buffer_param_layout` of megatron-core 0.19.2), so bytes on the wire depend on
it. Vocabularies are padded here, other than in params.py. Shapes: [out, in].
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bt_megatron.config.geometry import (
    T5_BUCKETS,
    encoder_stack,
    expanded_vectors,
    has_projection,
    is_t5,
    pooled_vectors,
)
from bt_megatron.config.schema import DecoderConfig, ModelConfig, RunConfig
from bt_megatron.parallel.layout import StageSlice

MIN_BUCKET = 40_000_000
"""Elements from which on a bucket is closed, if gradients are reduced during backward."""
BUCKET_PER_REPLICA = 1_000_000
"""The same for each data-parallel replica; the larger of the two counts."""
WEIGHT_ALIGNMENT = 64
"""Elements to a multiple of which each weight starts, with the distributed optimizer."""
BUCKET_ALIGNMENT = 128
"""Elements to a multiple of which, and of dp x cp, a bucket ends, with the same."""


@dataclass(frozen=True, slots=True)
class Weight:
    """One weight on one process."""

    elements: int
    """Numbers that this process holds."""
    is_partial: bool = False
    """Whether each tensor-parallel process sees a part of the rows only and so has a part of the
    gradient: norms and biases behind them, under sequence parallelism."""


def stage_weights(config: RunConfig, stage: StageSlice) -> tuple[Weight, ...]:
    """Return the weights that a process holds of a pipeline stage, in Megatron's order."""
    model = config.model
    if model.is_block:
        return tuple(_block_stage(config, stage))
    assert model.decoder is not None, "rules.py: a vanilla model has a decoder"
    return tuple(_vanilla_stage(config, model.decoder, stage))


def bucket_sizes(
    weights: Sequence[Weight], config: RunConfig, *, dp: int, pp_rank: int
) -> tuple[int, ...]:
    """Return the elements of each bucket of a stage's gradients, padding included.

    Args:
        weights: of the stage, in Megatron's order.
        config: the run.
        dp: data-parallel size.
        pp_rank: of the process. Only the first has several buckets: the others wait for its
            backward pass anyway.
    """
    layout = config.layout
    limit = None
    if layout.overlap_grad_reduce and pp_rank == 0:
        limit = max(MIN_BUCKET, BUCKET_PER_REPLICA * dp)
    start_at, end_at = 1, 1
    if layout.distributed_optimizer:
        start_at, end_at = WEIGHT_ALIGNMENT, math.lcm(dp * layout.cp, BUCKET_ALIGNMENT)
    sizes = []
    first = end = 0
    for weight in reversed(weights):
        end = _round_up(end, start_at) + weight.elements
        if limit is not None and end - first >= limit:
            end = _round_up(end, end_at)
            sizes.append(end - first)
            first = end
    if end > first:
        sizes.append(_round_up(end, end_at) - first)
    return tuple(sizes)


def padded_vocabulary(config: RunConfig) -> int:
    """Return v: the vocabulary, rounded up to a multiple of tp (model/head.py)."""
    return _round_up(config.model.vocab_size, config.layout.tp)


def _block_stage(config: RunConfig, stage: StageSlice) -> Iterator[Weight]:
    model = config.model
    block, token = model.block_decoder, model.token_decoder
    assert block is not None, "rules.py: a block model has a block decoder"
    assert token is not None, "rules.py: a block model has a token decoder"
    if stage.has_embedder:
        yield from _embedder(config, model, block)
    yield from _stack(config, block, stage.block_layers, has_last=stage.has_last_block_layer)
    if stage.has_first_token_layer:
        yield _table(config, token.hidden_size)
        yield from _column(config, block.hidden_size, expanded_vectors(model) * token.hidden_size)
        if is_t5(model):
            yield Weight(T5_BUCKETS * token.num_attention_heads)
    yield from _stack(
        config, token, stage.token_layers, has_last=stage.has_last_token_layer, t5=is_t5(model)
    )
    if stage.has_head and not is_t5(model):
        yield _table(config, token.hidden_size)


def _vanilla_stage(config: RunConfig, stack: DecoderConfig, stage: StageSlice) -> Iterator[Weight]:
    if stage.has_embedder:
        yield _table(config, stack.hidden_size)
    yield from _stack(config, stack, stage.token_layers, has_last=stage.has_last_token_layer)
    if stage.has_head:
        yield _table(config, stack.hidden_size)


def _embedder(config: RunConfig, model: ModelConfig, block: DecoderConfig) -> Iterator[Weight]:
    embedder = model.embedder
    assert embedder is not None, "rules.py: a block model has an embedder"
    width = embedder.hidden_size
    yield _table(config, width)
    if (encoder := encoder_stack(embedder)) is not None:
        yield Weight(embedder.max_positions * width)
        yield Weight(width)  # one token type
        yield from _norm(encoder, is_partial=False)
        for _ in range(encoder.num_layers):
            yield from _layer(config, encoder, is_partial=False)
    if has_projection(embedder):
        yield from _column(config, pooled_vectors(model) * width, block.hidden_size)


def _stack(
    config: RunConfig, stack: DecoderConfig, layers: int, *, has_last: bool, t5: bool = False
) -> Iterator[Weight]:
    is_partial = config.layout.sequence_parallel
    for _ in range(layers):
        yield from _layer(config, stack, is_partial=is_partial, t5=t5)
    if has_last:
        yield from _norm(stack, is_partial=is_partial)


def _layer(
    config: RunConfig, stack: DecoderConfig, *, is_partial: bool, t5: bool = False
) -> Iterator[Weight]:
    """Yield one layer; attention registers its output projection before the others."""
    tp, width, bias = config.layout.tp, stack.hidden_size, stack.bias
    heads = stack.num_attention_heads * stack.head_dim
    groups = stack.query_groups * stack.head_dim
    gated = 2 if stack.activation == "swiglu" else 1
    yield from _norm(stack, is_partial=is_partial)
    yield from _row(tp, heads, width, bias=bias, is_partial=is_partial)
    yield from _column(config, width, heads + 2 * groups, bias=bias)
    if t5:
        yield from _norm(stack, is_partial=is_partial)
        yield from _row(tp, heads, width, bias=bias, is_partial=is_partial)
        yield from _column(config, width, heads, bias=bias)
        yield from _column(config, width, 2 * groups, bias=bias)
    yield from _norm(stack, is_partial=is_partial)
    yield from _column(config, width, gated * stack.ffn_size, bias=bias)
    yield from _row(tp, stack.ffn_size, width, bias=bias, is_partial=is_partial)


def _norm(stack: DecoderConfig, *, is_partial: bool) -> Iterator[Weight]:
    yield Weight(stack.hidden_size, is_partial)
    if stack.normalization == "layernorm":
        yield Weight(stack.hidden_size, is_partial)


def _table(config: RunConfig, width: int) -> Weight:
    return Weight(padded_vocabulary(config) // config.layout.tp * width)


def _column(config: RunConfig, inputs: int, outputs: int, *, bias: bool = True) -> Iterator[Weight]:
    """Yield a linear layer whose outputs are dealt out."""
    local = outputs // config.layout.tp
    yield Weight(local * inputs)
    if bias:
        yield Weight(local)


def _row(tp: int, inputs: int, outputs: int, *, bias: bool, is_partial: bool) -> Iterator[Weight]:
    """Yield a linear layer whose inputs are dealt out; its bias is added to the sum."""
    yield Weight(inputs // tp * outputs)
    if bias:
        yield Weight(outputs, is_partial)


def _round_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
