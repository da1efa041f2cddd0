# SPDX-License-Identifier: Apache-2.0
"""How many bytes a stage keeps for the backward pass, an ESTIMATE; see memory.py.

Counted for one micro-batch on one process: a process has 1/cp of a sequence.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bt_megatron.config.geometry import (
    encoder_positions,
    encoder_stack,
    expanded_vectors,
    is_t5,
    token_positions,
)
from bt_megatron.config.schema import DecoderConfig, ModelConfig, RunConfig
from bt_megatron.parallel.layout import StageSlice


@dataclass(frozen=True, kw_only=True, slots=True)
class StageActivations:
    """Bytes of one micro-batch on one stage."""

    held: int
    """Kept from the forward to the end of the backward pass."""
    working: int
    """Computed again in the backward pass, and there only while that runs."""
    logits: int
    """Logits that are there at a time."""


class Element(NamedTuple):
    """What one letter of a layout string keeps, in bytes."""

    rest: int
    """What is kept beside the layers."""
    layers: int = 0
    """Layers of this element."""
    layer: int = 0
    """What each of them keeps."""
    again: int = 0
    """What is computed again of a layer and there only while its backward pass runs."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What runs through the layers of a stack on one process."""

    stack: DecoderConfig
    positions: int
    """Rows of one micro-batch."""
    t5: bool = False
    """Whether layers have cross-attention."""
    causal: bool = False
    """Whether rows are one causal sequence."""
    fp8: bool = False
    """Whether products are in FP8: they keep their inputs in one byte per value."""
    cut_stream: bool = True
    """Whether sequence parallelism can cut the rows; it leaves the embedder's encoder whole."""

    def product_input(self, value: int) -> int:
        """Return the bytes of a value that enters a product, given those in training."""
        return 1 if self.fp8 else value


def stage_activations(
    config: RunConfig, stages: Sequence[StageSlice]
) -> tuple[StageActivations, ...]:
    """Count the bytes of each stage.

    Args:
        config: The run.
        stages: What each stage holds.
    """
    elements = iter(_elements(config))
    letters = (stage.letters for stage in stages)
    held = ([(letter, next(elements)) for letter in part] for part in letters)
    return tuple(_stage(config, stage, part) for stage, part in zip(stages, held, strict=True))


def _stage(
    config: RunConfig, stage: StageSlice, elements: Sequence[tuple[str, Element]]
) -> StageActivations:
    """Count one stage; with token slices its token part is kept as one input."""
    slices = config.memory.token_slices
    logits = _logits(config) if stage.has_head else 0
    if slices == 1:
        held, working = _kept([element for _, element in elements])
        return StageActivations(held=held, working=working, logits=logits)
    held, working = _kept([element for letter, element in elements if letter in "Eb"])
    if tokens := [element for letter, element in elements if letter in "tL"]:
        part = divide(sum(_kept(tokens)), slices)
        held, working = held + _slices_input(config, stage), max(working, part)
    return StageActivations(held=held, working=working, logits=logits)


def _kept(elements: Sequence[Element]) -> tuple[int, int]:
    """Return what elements hold, and the most that is computed again of a layer."""
    held = sum(element.rest + element.layers * element.layer for element in elements)
    return held, max((element.again for element in elements), default=0)


def _slices_input(config: RunConfig, stage: StageSlice) -> int:
    """Count what the token part of a stage starts from: [n, b, g], or [q*n, b, h]."""
    block, token = config.model.block_decoder, config.model.token_decoder
    assert block is not None, "memory_rules.py: token slices are of block models"
    assert token is not None, "memory_rules.py: token slices are of block models"
    blocks = value_bytes(config) * _tokens(config) // config.model.block_length
    if stage.has_first_token_layer:
        return blocks * block.hidden_size
    return blocks * token_positions(config.model) * token.hidden_size


def _elements(config: RunConfig) -> Iterator[Element]:
    """Yield what each letter of the layout string keeps, in its order."""
    model, tokens, value = config.model, _tokens(config), value_bytes(config)
    fp8 = config.kernels.fp8 != "none"
    if not model.is_block:
        stack = model.decoder
        assert stack is not None, "rules.py: a vanilla model has a decoder"
        stream = Element(_stream(config, value * tokens * stack.hidden_size))
        layer = _layer(config, Rows(stack, tokens, causal=True, fp8=fp8))
        yield from (stream, *[layer] * stack.num_layers, stream)
        return
    block, token = model.block_decoder, model.token_decoder
    assert block is not None, "rules.py: a block model has a block decoder"
    assert token is not None, "rules.py: a block model has a token decoder"
    blocks, t5 = tokens // model.block_length, is_t5(model)
    rows = Rows(token, blocks * token_positions(model), t5=t5, fp8=fp8 and not t5)
    layer = _layer(config, rows, sliced=config.memory.token_slices > 1)
    expanded = block.hidden_size + expanded_vectors(model) * token.hidden_size
    yield _embedder(config, model, blocks)
    yield from [_layer(config, Rows(block, blocks, causal=True, fp8=fp8))] * block.num_layers
    yield layer._replace(rest=value * blocks * expanded)
    yield from [layer] * (token.num_layers - 1)
    yield Element(_stream(config, value * tokens * token.hidden_size))


def _embedder(config: RunConfig, model: ModelConfig, blocks: int) -> Element:
    """Count the embedder: encoder layers, joined and block vectors."""
    embedder, block = model.embedder, model.block_decoder
    assert embedder is not None, "rules.py: a block model has an embedder"
    assert block is not None, "rules.py: a block model has a block decoder"
    positions = blocks * encoder_positions(model)
    rest = value_bytes(config) * (positions * embedder.hidden_size + blocks * block.hidden_size)
    if (encoder := encoder_stack(embedder)) is None:
        return Element(rest)
    layer = _layer(config, Rows(encoder, positions, cut_stream=False))
    return layer._replace(rest=rest, layers=encoder.num_layers)


def _layer(config: RunConfig, rows: Rows, *, sliced: bool = False) -> Element:
    """Count one layer; inside of token slices no layer is computed again as a whole."""
    stack, value = rows.stack, value_bytes(config)
    everything = rows.positions * _layer_bytes(config, rows)
    if config.memory.recompute == "full" and not sliced:
        kept = rows.positions * value * stack.hidden_size
        return Element(0, 1, _stream(config, kept) if rows.cut_stream else kept, everything)
    if config.memory.recompute == "selective" and rows.cut_stream:
        inside = rows.positions * divide(stack.ffn_size, config.layout.tp)
        return Element(0, 1, everything - rows.product_input(value) * inside, value * inside)
    return Element(0, 1, everything)


def _layer_bytes(config: RunConfig, rows: Rows) -> int:
    """Count the bytes that one layer keeps for one position.

    Causal attention keeps turned queries and keys beside the projection, whose values it
    looks at, and its output; the token decoder's kernel keeps the projection only.
    """
    stack, value = rows.stack, value_bytes(config)
    width, heads = stack.hidden_size, stack.num_attention_heads * stack.head_dim
    groups, factor = stack.query_groups * stack.head_dim, rows.product_input(value)
    stream = (1 if stack.residual == "parallel" else 2) * value * width + 2 * factor * width
    inside = value * (heads + 2 * groups)
    if rows.causal and stack.rotary_fraction > 0:
        inside += value * (heads + groups)
    # Of the output of attention the next product keeps the tensor itself but under delayed
    # scaling, which cannot scale it the same way once more.
    if rows.fp8 and config.kernels.fp8 == "delayed":
        inside += (factor + (value if rows.causal else 0)) * heads
    else:
        inside += value * heads
    inside += ((2 if stack.activation == "swiglu" else 1) * value + factor) * stack.ffn_size
    if rows.t5:
        stream, inside = stream + 2 * value * width, inside + 4 * value * width
    stream = _stream(config, stream) if rows.cut_stream else stream
    return stream + divide(inside, config.layout.tp)


def _stream(config: RunConfig, values: int) -> int:
    """Cut bytes of the residual stream, which only sequence parallelism does."""
    return divide(values, config.layout.tp if config.layout.sequence_parallel else 1)


def _logits(config: RunConfig) -> int:
    """Count the bytes of the logits that one process holds at a time."""
    rows = divide(_tokens(config), config.memory.token_slices)
    if config.kernels.head_chunk_tokens is not None:
        rows = min(rows, config.kernels.head_chunk_tokens)
    return value_bytes(config) * rows * divide(config.model.vocab_size, config.layout.tp)


def _tokens(config: RunConfig) -> int:
    """Return the tokens of one micro-batch on one process."""
    return config.data.seq_length * config.batch.micro_batch_size // config.layout.cp


def value_bytes(config: RunConfig) -> int:
    """Return the bytes of a value in the training precision."""
    return 2 if config.train.precision == "bf16" else 4


def divide(total: int, parts: int) -> int:
    """Divide, rounding up."""
    return -(-total // parts)
