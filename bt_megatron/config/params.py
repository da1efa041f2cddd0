# SPDX-License-Identifier: Apache-2.0
"""Exact parameter counts, by component and by element of a layout string.

Vocabulary padding for tensor parallelism is not counted. Shapes: [out, in].
"""

from dataclasses import dataclass, fields, replace

from bt_megatron.config.geometry import (
    T5_BUCKETS,
    encoder_stack,
    expanded_vectors,
    has_projection,
    is_t5,
    pooled_vectors,
)
from bt_megatron.config.schema import DecoderConfig, ModelConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterCounts:
    """Parameters of each component; what a model does not have is 0."""

    embedder: int = 0
    """Token table, encoder and projection of the embedder."""
    block_decoder: int = 0
    """Layers and final norm."""
    expansion: int = 0
    """Linear layer from a context embedding to r vectors."""
    token_embedding: int = 0
    """Input table of the token decoder, or of a vanilla model."""
    token_decoder: int = 0
    """Layers and final norm; for T5 also the relative bias."""
    decoder: int = 0
    """Layers and final norm of a vanilla model."""
    head: int = 0
    """Output table; 0 where it is the token embedding itself (T5)."""

    @property
    def non_embedding(self) -> int:
        """Layers and final norms of the decoders, the paper's "non-embedding" size."""
        return self.block_decoder + self.token_decoder + self.decoder

    @property
    def total(self) -> int:
        """All trained parameters."""
        return sum(getattr(self, item.name) for item in fields(self))


def count_parameters(model: ModelConfig) -> ParameterCounts:
    """Count the parameters of a model."""
    if not model.is_block:
        assert model.decoder is not None, "rules.py: a vanilla model has a decoder"
        table = model.vocab_size * model.decoder.hidden_size
        return ParameterCounts(
            token_embedding=table, decoder=stack_parameters(model.decoder), head=table
        )
    block, token = model.block_decoder, model.token_decoder
    assert block is not None, "rules.py: a block model has a block decoder"
    assert token is not None, "rules.py: a block model has a token decoder"
    table = model.vocab_size * token.hidden_size
    return ParameterCounts(
        embedder=embedder_parameters(model),
        block_decoder=stack_parameters(block),
        expansion=linear(block.hidden_size, expanded_vectors(model) * token.hidden_size, bias=True),
        token_embedding=table,
        token_decoder=stack_parameters(token, t5=is_t5(model)),
        head=0 if is_t5(model) else table,
    )


def element_parameters(model: ModelConfig) -> tuple[int, ...]:
    """Count the parameters of each letter of the layout string, in its order.

    Final norms count with the last layer of their stack, expansion and token embedding
    with the first token layer, the T5 relative bias with the first token layer.
    """
    counts = count_parameters(model)
    if not model.is_block:
        assert model.decoder is not None, "rules.py: a vanilla model has a decoder"
        return (counts.token_embedding, *_layers(model.decoder), counts.head)
    block, token = model.block_decoder, model.token_decoder
    assert block is not None, "rules.py: a block model has a block decoder"
    assert token is not None, "rules.py: a block model has a token decoder"
    first, *rest = _layers(token, t5=is_t5(model))
    first += counts.expansion + counts.token_embedding
    return (counts.embedder, *_layers(block), first, *rest, counts.head)


def embedder_parameters(model: ModelConfig) -> int:
    """Count the embedder of a block model.

    lookup: table [v, E]; with projection: + [g, k*E] and bias.
    roberta kinds: word [v, E], position [max_positions, E] and one token type [1, E],
    norm, encoder layers, projection [g, k*E] or, from c CLS outputs, [g, c*E], and bias.
    """
    embedder, block = model.embedder, model.block_decoder
    assert embedder is not None, "rules.py: a block model has an embedder"
    assert block is not None, "rules.py: a block model has a block decoder"
    width = embedder.hidden_size
    count = model.vocab_size * width
    if (encoder := encoder_stack(embedder)) is not None:
        count += (embedder.max_positions + 1) * width + norm_parameters(encoder)
        count += encoder.num_layers * layer_parameters(encoder)
    if has_projection(embedder):
        count += linear(pooled_vectors(model) * width, block.hidden_size, bias=True)
    return count


def stack_parameters(stack: DecoderConfig, *, t5: bool = False) -> int:
    """Count the layers and the final norm of a stack; for T5 also its relative bias."""
    return sum(_layers(stack, t5=t5))


def layer_parameters(stack: DecoderConfig, *, t5: bool = False) -> int:
    """Count one layer: fused QKV, output projection, feed-forward, norms.

    QKV is [(a + 2 groups) * d, h], the first feed-forward linear [f, h], or [2f, h] with
    swiglu. A T5 layer has cross-attention too: q [h, h], kv [2h, h], output [h, h], norm.
    """
    width, ffn = stack.hidden_size, stack.ffn_size
    qkv = (stack.num_attention_heads + 2 * stack.query_groups) * stack.head_dim
    heads = stack.num_attention_heads * stack.head_dim
    count = linear(width, qkv, bias=stack.bias) + linear(heads, width, bias=stack.bias)
    gated = 2 * ffn if stack.activation == "swiglu" else ffn
    count += linear(width, gated, bias=stack.bias) + linear(ffn, width, bias=stack.bias)
    count += 2 * norm_parameters(stack)
    if t5:
        count += 4 * linear(width, width, bias=stack.bias) + norm_parameters(stack)
    return count


def layer_matrices(stack: DecoderConfig) -> int:
    """Count the weights that one layer multiplies by, biases and norms left out; not for T5."""
    norms = 2 * norm_parameters(stack)
    return layer_parameters(replace(stack, bias=False)) - norms


def norm_parameters(stack: DecoderConfig) -> int:
    """Count one norm: weight and bias, or the weight only with rmsnorm."""
    return stack.hidden_size * (2 if stack.normalization == "layernorm" else 1)


def linear(inputs: int, outputs: int, *, bias: bool) -> int:
    """Count one linear layer."""
    return inputs * outputs + (outputs if bias else 0)


def _layers(stack: DecoderConfig, *, t5: bool = False) -> list[int]:
    """Count each layer; the last one carries the final norm, T5's first one its bias."""
    layers = [layer_parameters(stack, t5=t5)] * stack.num_layers
    layers[-1] += norm_parameters(stack)
    layers[0] += T5_BUCKETS * stack.num_attention_heads if t5 else 0
    return layers
