# SPDX-License-Identifier: Apache-2.0
"""Memory of one process, an ESTIMATE in bytes, by part.

Formula `bt-memory-v2`. With e bytes per value of the training precision (4, or 2 for
bf16), t the tensor-parallel size, and everything of a stage counted as cut by t:

    weights       e per parameter
    main weights  4 per parameter if bf16, divided by dp with the distributed optimizer
    gradients     4 per parameter (one fp32 buffer, whole on each process)
    optimizer     8 per parameter (two fp32 moments), divided by dp as above
    activations   kept for backward, for each micro-batch in flight: per layer and position
                  residual stream and norm outputs, 3 h (parallel residual) or 4 h
                  (divided by t under sequence parallelism only), and
                  (qkv + a d + 2 f) / t (3 f with swiglu; T5: + 2 h + 4 h / t)
                  and at the ends the embedder's output and the expansion's in- and output
    logits        e per logit of one micro-batch, or of kernels.head_chunk_tokens rows of it:
                  a buffer that becomes the gradient in place (fp32 sums stay in registers)

A stage keeps as many micro-batches in flight as 1F1B needs: pp - index, at most m.
Attention is taken to be fused (scores are not kept). Left out: the CUDA context, NCCL
buffers, workspaces and fragmentation, typically 2 to 6 GiB on a GPU; nothing is recomputed.
"""

from dataclasses import dataclass, fields

from bt_megatron.config.geometry import (
    encoder_positions,
    encoder_stack,
    expanded_vectors,
    is_t5,
    token_positions,
)
from bt_megatron.config.params import element_parameters
from bt_megatron.config.schema import DecoderConfig, ModelConfig, RunConfig
from bt_megatron.parallel.layout import StageSlice, sum_by_stage

FORMULA = "bt-memory-v2"
"""Name and version of the estimate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryEstimate:
    """Bytes of one process, by part."""

    weights: int
    """Weights in the training precision."""
    main_weights: int
    """fp32 copy that the optimizer works on (bf16 only)."""
    gradients: int
    """fp32 gradient buffer."""
    optimizer: int
    """Adam's two moments."""
    activations: int
    """What the backward pass needs."""
    logits: int
    """Logits of the rows that the head computes at a time, then their gradient."""

    @property
    def total(self) -> int:
        """All parts."""
        return sum(getattr(self, item.name) for item in fields(self))


def estimate_memory(
    config: RunConfig, stages: tuple[StageSlice, ...], *, dp: int, micro_batches: int
) -> tuple[MemoryEstimate, ...]:
    """Estimate the bytes of a process of each pipeline stage.

    Args:
        config: The run.
        stages: What each stage holds.
        dp: Data-parallel size.
        micro_batches: Micro-batches of one replica per optimizer step.
    """
    layout = config.layout
    value = 2 if config.train.precision == "bf16" else 4
    parameters = sum_by_stage(element_parameters(config.model), stages)
    values = sum_by_stage(element_activations(config), stages)
    shards = layout.tp * (dp if layout.distributed_optimizer else 1)
    logits = _logits(config)
    return tuple(
        MemoryEstimate(
            weights=_divide(value * parameters[i], layout.tp),
            main_weights=_divide(4 * parameters[i], shards) if value == 2 else 0,
            gradients=_divide(4 * parameters[i], layout.tp),
            optimizer=_divide(8 * parameters[i], shards),
            activations=value * values[i] * min(micro_batches, layout.pp - i),
            logits=value * logits if stage.has_head else 0,
        )
        for i, stage in enumerate(stages)
    )


def element_activations(config: RunConfig) -> tuple[int, ...]:
    """Count the values kept for backward of each letter of the layout string, per rank.

    For one micro-batch, in the order of the layout string.
    """
    model, batch = config.model, config.batch.micro_batch_size
    tokens = config.data.seq_length * batch
    if not model.is_block:
        stack = model.decoder
        assert stack is not None, "rules.py: a vanilla model has a decoder"
        layer = tokens * _layer_values(config, stack)
        stream = _stream(config, tokens * stack.hidden_size)
        return (stream, *[layer] * stack.num_layers, stream)
    block, token = model.block_decoder, model.token_decoder
    assert block is not None, "rules.py: a block model has a block decoder"
    assert token is not None, "rules.py: a block model has a token decoder"
    blocks = tokens // model.block_length
    positions = blocks * token_positions(model)
    layers = [positions * _layer_values(config, token, t5=is_t5(model))] * token.num_layers
    expanded = block.hidden_size + expanded_vectors(model) * token.hidden_size
    layers[0] += blocks * expanded
    return (
        _embedder_values(config, model, blocks),
        *[blocks * _layer_values(config, block)] * block.num_layers,
        *layers,
        _stream(config, tokens * token.hidden_size),
    )


def _embedder_values(config: RunConfig, model: ModelConfig, blocks: int) -> int:
    """Count the values that the embedder keeps: encoder layers, joined and block vectors."""
    embedder, block = model.embedder, model.block_decoder
    assert embedder is not None, "rules.py: a block model has an embedder"
    assert block is not None, "rules.py: a block model has a block decoder"
    count = blocks * (encoder_positions(model) * embedder.hidden_size + block.hidden_size)
    if (encoder := encoder_stack(embedder)) is not None:
        layer = _layer_values(config, encoder, cut_stream=False)
        count += encoder.num_layers * blocks * encoder_positions(model) * layer
    return count


def _layer_values(
    config: RunConfig, stack: DecoderConfig, *, t5: bool = False, cut_stream: bool = True
) -> int:
    """Count the values that one layer keeps for one position.

    The embedder's encoder runs without sequence parallelism: cut_stream is False.
    """
    width, heads = stack.hidden_size, stack.num_attention_heads
    stream = (3 if stack.residual == "parallel" else 4) * width
    inside = (heads + 2 * stack.query_groups) * stack.head_dim + heads * stack.head_dim
    inside += (3 if stack.activation == "swiglu" else 2) * stack.ffn_size
    if t5:
        stream, inside = stream + 2 * width, inside + 4 * width
    stream = _stream(config, stream) if cut_stream else stream
    return stream + _divide(inside, config.layout.tp)


def _stream(config: RunConfig, values: int) -> int:
    """Cut values of the residual stream, which only sequence parallelism does."""
    return _divide(values, config.layout.tp if config.layout.sequence_parallel else 1)


def _logits(config: RunConfig) -> int:
    """Count the logits that one process holds at a time."""
    rows = config.data.seq_length * config.batch.micro_batch_size
    if config.kernels.head_chunk_tokens is not None:
        rows = min(rows, config.kernels.head_chunk_tokens)
    return rows * _divide(config.model.vocab_size, config.layout.tp)


def _divide(total: int, parts: int) -> int:
    """Divide, rounding up."""
    return -(-total // parts)
