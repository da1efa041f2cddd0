# SPDX-License-Identifier: Apache-2.0
"""How many values a stage keeps for the backward pass, an ESTIMATE; see memory.py.

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
    """Values of one micro-batch on one stage."""

    held: int
    """Kept from the forward to the end of the backward pass."""
    working: int
    """Computed again in the backward pass, and there only while that runs."""
    logits: int
    """Logits that are there at a time."""


class Element(NamedTuple):
    """What one letter of a layout string keeps."""

    rest: int
    """What is kept whether layers are recomputed or not."""
    layers: int = 0
    """Layers of this element."""
    layer: int = 0
    """What each of them keeps."""
    layer_input: int = 0
    """What each of them keeps if it is recomputed: its input."""


def stage_activations(
    config: RunConfig, stages: Sequence[StageSlice]
) -> tuple[StageActivations, ...]:
    """Count the values of each stage.

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
        held, working = _kept(config, [element for _, element in elements])
        return StageActivations(held=held, working=working, logits=logits)
    held, working = _kept(config, [element for letter, element in elements if letter in "Eb"])
    if tokens := [element for letter, element in elements if letter in "tL"]:
        part = divide(sum(_everything(element) for element in tokens), slices)
        held, working = held + _slices_input(config, stage), max(working, part)
    return StageActivations(held=held, working=working, logits=logits)


def _kept(config: RunConfig, elements: Sequence[Element]) -> tuple[int, int]:
    """Return what elements hold, and the largest layer that is computed again."""
    rest = sum(element.rest for element in elements)
    if config.memory.recompute == "none":
        return sum(_everything(element) for element in elements), 0
    inputs = sum(element.layers * element.layer_input for element in elements)
    return rest + inputs, max((element.layer for element in elements), default=0)


def _everything(element: Element) -> int:
    """Return what an element keeps if nothing is computed again."""
    return element.rest + element.layers * element.layer


def _slices_input(config: RunConfig, stage: StageSlice) -> int:
    """Count what the token part of a stage starts from: [n, b, g], or [q*n, b, h]."""
    block, token = config.model.block_decoder, config.model.token_decoder
    assert block is not None, "memory_rules.py: token slices are of block models"
    assert token is not None, "memory_rules.py: token slices are of block models"
    blocks = _tokens(config) // config.model.block_length
    if stage.has_first_token_layer:
        return blocks * block.hidden_size
    return blocks * token_positions(config.model) * token.hidden_size


def _elements(config: RunConfig) -> Iterator[Element]:
    """Yield what each letter of the layout string keeps, in its order."""
    model, tokens = config.model, _tokens(config)
    if not model.is_block:
        stack = model.decoder
        assert stack is not None, "rules.py: a vanilla model has a decoder"
        stream = Element(_stream(config, tokens * stack.hidden_size))
        layer = _layer(config, stack, tokens, causal=True)
        yield from (stream, *[layer] * stack.num_layers, stream)
        return
    block, token = model.block_decoder, model.token_decoder
    assert block is not None, "rules.py: a block model has a block decoder"
    assert token is not None, "rules.py: a block model has a token decoder"
    blocks = tokens // model.block_length
    layer = _layer(config, token, blocks * token_positions(model), t5=is_t5(model))
    expanded = block.hidden_size + expanded_vectors(model) * token.hidden_size
    yield _embedder(config, model, blocks)
    yield from [_layer(config, block, blocks, causal=True)] * block.num_layers
    yield layer._replace(rest=blocks * expanded)
    yield from [layer] * (token.num_layers - 1)
    yield Element(_stream(config, tokens * token.hidden_size))


def _embedder(config: RunConfig, model: ModelConfig, blocks: int) -> Element:
    """Count the embedder: encoder layers, joined and block vectors."""
    embedder, block = model.embedder, model.block_decoder
    assert embedder is not None, "rules.py: a block model has an embedder"
    assert block is not None, "rules.py: a block model has a block decoder"
    positions = blocks * encoder_positions(model)
    rest = positions * embedder.hidden_size + blocks * block.hidden_size
    if (encoder := encoder_stack(embedder)) is None:
        return Element(rest)
    layer = positions * _layer_values(config, encoder, cut_stream=False)
    return Element(rest, encoder.num_layers, layer, positions * encoder.hidden_size)


def _layer(
    config: RunConfig,
    stack: DecoderConfig,
    positions: int,
    *,
    t5: bool = False,
    causal: bool = False,
) -> Element:
    """Count one layer of a decoder.

    Causal attention keeps turned queries and keys beside the projection, whose values it
    looks at; the token decoder's kernel turns them itself.
    """
    values = _layer_values(config, stack, t5=t5)
    if causal and stack.rotary_fraction > 0:
        turned = (stack.num_attention_heads + stack.query_groups) * stack.head_dim
        values += divide(turned, config.layout.tp)
    kept = positions * values
    return Element(0, 1, kept, positions * _stream(config, stack.hidden_size))


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
    return stream + divide(inside, config.layout.tp)


def _stream(config: RunConfig, values: int) -> int:
    """Cut values of the residual stream, which only sequence parallelism does."""
    return divide(values, config.layout.tp if config.layout.sequence_parallel else 1)


def _logits(config: RunConfig) -> int:
    """Count the logits that one process holds at a time."""
    rows = divide(_tokens(config), config.memory.token_slices)
    if config.kernels.head_chunk_tokens is not None:
        rows = min(rows, config.kernels.head_chunk_tokens)
    return rows * divide(config.model.vocab_size, config.layout.tp)


def _tokens(config: RunConfig) -> int:
    """Return the tokens of one micro-batch on one process."""
    return config.data.seq_length * config.batch.micro_batch_size // config.layout.cp


def divide(total: int, parts: int) -> int:
    """Divide, rounding up."""
    return -(-total // parts)
