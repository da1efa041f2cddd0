# SPDX-License-Identifier: Apache-2.0
"""What the layers of a pipeline stage send for one micro-batch, forward and backward.

The functions follow the modules of the same names in `model/` and these of megatron-core 0.19.2:

    VocabParallelEmbedding   forward: all-reduce of the output
    ColumnParallelLinear     forward: none; backward: all-reduce of the input's gradient
      sequence parallel      forward: all-gather of the input; backward: the same again, for the
                             weight's gradient, and reduce-scatter of the input's gradient
      gather_output          forward: all-gather of the output
    RowParallelLinear        forward: all-reduce of the output
      sequence parallel      forward: reduce-scatter of it; backward: all-gather of its gradient
    scatter of whole rows    sequence parallel, backward: all-gather of the gradient
    gather of rows           sequence parallel, forward: all-gather; backward: reduce-scatter

Rows are counted as in model/shapes.py, n and s being this process's share under context
parallelism.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from bt_megatron.config.geometry import (
    T5_BUCKETS,
    encoder_positions,
    encoder_stack,
    expanded_vectors,
    has_projection,
    is_t5,
    pooled_vectors,
    token_positions,
)
from bt_megatron.config.schema import DecoderConfig, ModelConfig, RunConfig
from bt_megatron.parallel.layout import StageSlice

Operation = Literal["all_reduce", "all_gather", "reduce_scatter", "broadcast", "send", "recv"]
Group = Literal["tp", "cp", "dp_cp", "pp", "model", "world"]
Phase = Literal["forward", "backward", "gradients", "end of step", "optimizer"]
LOSS_STATISTICS = 3 * 4
"""Bytes of three float32 for each target: maximum, sum and target logit of a part of the vocabulary
(kernels/linear_cross_entropy.py)."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of one process."""

    operation: Operation
    group: Group
    phase: Phase
    why: str
    bytes: int
    """Of the tensor that the group has in common: what is summed, the result of an all-gather,
    the input of a reduce-scatter, the message."""
    peer: int | None = None
    """Pipeline rank of the other side of a send or recv."""


def value_bytes(config: RunConfig) -> int:
    """Return the bytes of a weight or activation."""
    return 2 if config.train.precision == "bf16" else 4


def own_rows(config: RunConfig) -> int:
    """Return n of a block model, s of a vanilla one, on one process."""
    unit = config.model.block_length if config.model.is_block else 1
    return config.data.seq_length // unit // config.layout.cp


def stage_calls(config: RunConfig, stage: StageSlice) -> list[Call]:
    """List the calls of a process of a stage for one micro-batch, groups of one included."""
    model = config.model
    if model.is_block:
        return _block_stage(config, stage)
    assert model.decoder is not None, "rules.py: a vanilla model has a decoder"
    return _vanilla_stage(config, model.decoder, stage)


def _block_stage(config: RunConfig, stage: StageSlice) -> list[Call]:
    model, rows = config.model, own_rows(config)
    block = model.block_decoder
    assert block is not None, "rules.py: a block model has a block decoder"
    calls: list[Call] = []
    if stage.has_embedder:
        calls += _embedder(config, model, block)
    layer = _layer(config, block, "block decoder", rows)
    layer += _keys_and_values(config, block, "block decoder", rows)
    calls += _layers(config, layer, stage.block_layers)
    slices = config.memory.token_slices
    if slices == 1:
        return calls + _token_part(config, model, stage, rows)
    part = _token_part(config, model, stage, rows // slices)
    return calls + _computed_again(part) * slices


def _vanilla_stage(config: RunConfig, stack: DecoderConfig, stage: StageSlice) -> list[Call]:
    rows = own_rows(config)
    whole = _activation(config, rows, stack.hidden_size)
    calls: list[Call] = []
    if stage.has_embedder:
        calls += [_reduce("token embedding", whole), *_scatter(config, "token embedding", whole)]
    layer = _layer(config, stack, "decoder", rows)
    layer += _keys_and_values(config, stack, "decoder", rows)
    calls += _layers(config, layer, stage.token_layers)
    if stage.has_head:
        calls += _head(config, whole, whole, rows)
    return calls


def _embedder(config: RunConfig, model: ModelConfig, block: DecoderConfig) -> list[Call]:
    """model/embedder.py: whole rows on every process, also under sequence parallelism."""
    embedder, rows = model.embedder, own_rows(config)
    assert embedder is not None, "rules.py: a block model has an embedder"
    width, positions = embedder.hidden_size, encoder_positions(model)
    blocks = _activation(config, rows, block.hidden_size)  # [n, b, g]
    calls = [_reduce("embedder table", _activation(config, rows * positions, width))]
    if (encoder := encoder_stack(embedder)) is not None:
        whole = _activation(config, rows * positions, width)
        layer = [
            *_column("embedder encoder", whole, is_cut=False),
            *_row("embedder encoder", whole, is_cut=False),
        ]
        calls += 2 * layer * encoder.num_layers
    if has_projection(embedder):
        joined = _activation(config, rows, pooled_vectors(model) * width)
        calls += _column("embedder projection", joined, is_cut=False)
        calls.append(_gather("embedder projection, output", blocks))
    return calls + _scatter(config, "embedder", blocks)


def _token_part(config: RunConfig, model: ModelConfig, stage: StageSlice, rows: int) -> list[Call]:
    """List the calls from the expansion on, for `rows` blocks (`_write_blocks`)."""
    token = model.token_decoder
    assert token is not None, "rules.py: a block model has a token decoder"
    width, t5 = token.hidden_size, is_t5(model)
    hidden = _activation(config, rows * token_positions(model), width)  # [q*n, b, h]
    calls: list[Call] = []
    if stage.has_first_token_layer:
        calls += _token_input(config, model, rows, hidden)
    layer = _layer(config, token, "token decoder", rows * token_positions(model))
    if t5:
        seen = _activation(config, rows * expanded_vectors(model), width)  # [r*n, b, h]
        is_cut = config.layout.sequence_parallel
        layer += _column("token decoder, cross-attention queries", hidden, is_cut=is_cut)
        layer += _column("token decoder, cross-attention context", seen, is_cut=is_cut)
        layer += _row("token decoder", hidden, is_cut=is_cut)
    if config.memory.token_slices > 1:  # the slice as a whole is computed again
        calls += layer * stage.token_layers
    else:
        calls += _layers(config, layer, stage.token_layers)
    if stage.has_head:
        predicting = rows * model.block_length  # [k*n, b, h], of q * n
        calls += _head(config, hidden, _activation(config, predicting, width), predicting)
    return calls


def _token_input(config: RunConfig, model: ModelConfig, rows: int, hidden: int) -> list[Call]:
    """model/token_input.py: expansion and the tokens of the next block."""
    block, token = model.block_decoder, model.token_decoder
    assert block is not None, "rules.py: a block model has a block decoder"
    assert token is not None, "rules.py: a block model has a token decoder"
    context = _activation(config, rows, block.hidden_size)
    vectors = expanded_vectors(model)
    expanded = _activation(config, rows, vectors * token.hidden_size)
    fed = model.block_length - (1 if token.strategy == "prefix" else 0)
    calls = [
        *_column("expansion", context, is_cut=config.layout.sequence_parallel),
        _gather("expansion, output", expanded),
        _reduce("token embedding", _activation(config, rows * fed, token.hidden_size)),
        *_scatter(config, "token decoder, input", hidden),
    ]
    if is_t5(model):
        calls += _scatter(config, "token decoder, context", expanded)
        bias = T5_BUCKETS * token.num_attention_heads * value_bytes(config)
        calls.append(Call("all_reduce", "tp", "backward", "relative bias", bias))
    return calls


def _head(config: RunConfig, hidden: int, predicting: int, rows: int) -> list[Call]:
    """model/head.py: all rows are gathered, those that predict nothing are dropped.

    Args:
        config: the run.
        hidden: bytes of all rows.
        predicting: bytes of those that predict a token.
        rows: number of the latter, for each sequence.
    """
    statistics = rows * config.batch.micro_batch_size * LOSS_STATISTICS * config.layout.tp
    if config.layout.sequence_parallel:
        calls = [
            _gather("head, input", hidden),
            Call("reduce_scatter", "tp", "backward", "head, gradient of the input", hidden),
        ]
    else:
        calls = _column("head", predicting, is_cut=False)
    return [*calls, _gather("loss, three numbers per target", statistics)]


def _layer(config: RunConfig, stack: DecoderConfig, name: str, rows: int) -> list[Call]:
    """List the calls of self-attention and MLP, each a column and a row parallel linear."""
    whole, is_cut = _activation(config, rows, stack.hidden_size), config.layout.sequence_parallel
    return 2 * [*_column(name, whole, is_cut=is_cut), *_row(name, whole, is_cut=is_cut)]


def _keys_and_values(config: RunConfig, stack: DecoderConfig, name: str, rows: int) -> list[Call]:
    """model/attention.py, CausalAttention: keys and values of the whole sequence."""
    width = stack.query_groups // config.layout.tp * stack.head_dim
    whole = _activation(config, rows * config.layout.cp, width)
    calls = [
        Call("all_gather", "cp", "forward", f"{name}, keys and values", whole),
        Call("reduce_scatter", "cp", "backward", f"{name}, gradients of keys and values", whole),
    ]
    return 2 * calls


def _layers(config: RunConfig, layer: list[Call], count: int) -> list[Call]:
    if config.memory.recompute == "full":
        layer = _computed_again(layer)
    return layer * count


def _computed_again(calls: Sequence[Call]) -> list[Call]:
    """Add the forward pass that the backward pass starts with."""
    again = [
        replace(call, phase="backward", why=f"{call.why}, computed again")
        for call in calls
        if call.phase == "forward"
    ]
    return [*calls, *again]


def _column(name: str, whole: int, *, is_cut: bool) -> list[Call]:
    if not is_cut:
        return [Call("all_reduce", "tp", "backward", f"{name}, gradient of inputs", whole)]
    return [
        _gather(f"{name}, inputs", whole),
        Call("all_gather", "tp", "backward", f"{name}, inputs for weight gradients", whole),
        Call("reduce_scatter", "tp", "backward", f"{name}, gradient of inputs", whole),
    ]


def _row(name: str, whole: int, *, is_cut: bool) -> list[Call]:
    if not is_cut:
        return [_reduce(f"{name}, outputs", whole)]
    return [
        Call("reduce_scatter", "tp", "forward", f"{name}, outputs", whole),
        Call("all_gather", "tp", "backward", f"{name}, gradient of outputs", whole),
    ]


def _scatter(config: RunConfig, name: str, whole: int) -> list[Call]:
    if not config.layout.sequence_parallel:
        return []
    return [Call("all_gather", "tp", "backward", f"{name}, gradient of all rows", whole)]


def _reduce(why: str, whole: int) -> Call:
    return Call("all_reduce", "tp", "forward", why, whole)


def _gather(why: str, whole: int) -> Call:
    return Call("all_gather", "tp", "forward", why, whole)


def _activation(config: RunConfig, rows: int, width: int) -> int:
    """Return the bytes of [rows, b, width]."""
    return rows * config.batch.micro_batch_size * width * value_bytes(config)
