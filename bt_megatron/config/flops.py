# SPDX-License-Identifier: Apache-2.0
"""FLOPs of training, one formula per component.

Formula `bt-matmul-v1`. One multiply-add is 2 FLOPs. Only matrix products are counted:
linear layers, attention scores (q k^T) and attention values (p v). Not counted: norms,
activations, softmax, rotary, biases, table look-ups, the optimizer, recomputation.
The backward pass is twice the forward pass (one product for the input's gradient, one
for the weight's), so training is 3 x forward. Everything is counted as it is computed,
per sequence of s = n * k tokens: the last block's row is computed and masked, though
only n - 1 blocks are predicted.

With h, g the widths, f the feed-forward width, a heads of width d, c query groups:

    layer(P, pairs)  2 P (h (a + 2c) d + a d h + h f (2 f with swiglu) + f h) + 4 a d pairs
                     P positions, pairs of (query, key) that attention works on
    embedder         lookup: 0; roberta: layers(n e, n e^2), e = k or c + k positions, both ways
                     + projection 2 n (m E) g, m = k, or CLS tokens
    block decoder    layers(n, pairs of n)                         1/k position per token
    expansion        2 n g (r h)
    token decoder    layers(n q, n * pairs of q)                   q/k positions per token
                     T5 also, per layer: 2 n k (h h + 2 h h + h h) + 4 a d n k^2
    head             2 n k h v                                     k positions per block
    vanilla          layers(s, pairs of s) + head 2 s h v

`pairs of x` is x^2 under the convention "full" (attention counted as if it were not
masked, as PaLM's appendix B, nanoGPT and torchtitan do) and x (x + 1) / 2 under "causal".
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

from bt_megatron.config.geometry import (
    encoder_positions,
    encoder_stack,
    expanded_vectors,
    has_projection,
    is_t5,
    pooled_vectors,
    token_positions,
)
from bt_megatron.config.schema import DecoderConfig, ModelConfig

FORMULA = "bt-matmul-v1"
"""Name and version of the formulas above; a change of any of them changes it."""

Convention = Literal["full", "causal"]
"""How masked attention is counted."""

TRAINING_FACTOR = 3
"""Forward plus backward, in units of forward."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ForwardFlops:
    """FLOPs of one forward pass over one sequence, by component."""

    seq_length: int
    """Tokens per sequence."""
    embedder: int = 0
    """Encoder and projection; a look-up is free."""
    block_decoder: int = 0
    """Layers, at one position per block."""
    expansion: int = 0
    """Linear layer after the block decoder."""
    token_decoder: int = 0
    """Layers, at q positions per block."""
    decoder: int = 0
    """Layers of a vanilla model."""
    head: int = 0
    """Product with the output table."""

    @property
    def total(self) -> int:
        """Forward FLOPs of one sequence."""
        return sum(getattr(self, part) for part in self.parts())

    @property
    def training_per_sequence(self) -> int:
        """Forward and backward FLOPs of one sequence."""
        return TRAINING_FACTOR * self.total

    @property
    def training_per_token(self) -> float:
        """Forward and backward FLOPs of one token of the data."""
        return self.training_per_sequence / self.seq_length

    @staticmethod
    def parts() -> tuple[str, ...]:
        """Return the names of the components."""
        return tuple(item.name for item in fields(ForwardFlops) if item.name != "seq_length")


def forward_flops(
    model: ModelConfig, *, seq_length: int, convention: Convention = "full"
) -> ForwardFlops:
    """Count the forward FLOPs of one sequence, by component.

    Args:
        model: The model.
        seq_length: s, a whole number of blocks.
        convention: How masked attention is counted.
    """
    if not model.is_block:
        assert model.decoder is not None, "rules.py: a vanilla model has a decoder"
        stack = model.decoder
        layer = layer_flops(stack, seq_length, _pairs(seq_length, convention))
        return ForwardFlops(
            seq_length=seq_length,
            decoder=stack.num_layers * layer,
            head=2 * seq_length * stack.hidden_size * model.vocab_size,
        )
    block, token = model.block_decoder, model.token_decoder
    assert block is not None, "rules.py: a block model has a block decoder"
    assert token is not None, "rules.py: a block model has a token decoder"
    blocks = seq_length // model.block_length
    expanded = expanded_vectors(model) * token.hidden_size
    return ForwardFlops(
        seq_length=seq_length,
        embedder=embedder_flops(model, blocks),
        block_decoder=block.num_layers * layer_flops(block, blocks, _pairs(blocks, convention)),
        expansion=2 * blocks * block.hidden_size * expanded,
        token_decoder=token.num_layers * token_layer_flops(model, blocks, convention),
        head=2 * seq_length * token.hidden_size * model.vocab_size,
    )


def element_flops(
    model: ModelConfig, *, seq_length: int, convention: Convention = "full"
) -> tuple[int, ...]:
    """Count the forward FLOPs of each letter of the layout string, in its order.

    The expansion counts with the first token layer.
    """
    flops = forward_flops(model, seq_length=seq_length, convention=convention)
    if not model.is_block:
        assert model.decoder is not None, "rules.py: a vanilla model has a decoder"
        return (0, *_share(flops.decoder, model.decoder), flops.head)
    block, token = model.block_decoder, model.token_decoder
    assert block is not None, "rules.py: a block model has a block decoder"
    assert token is not None, "rules.py: a block model has a token decoder"
    first, *rest = _share(flops.token_decoder, token)
    blocks = _share(flops.block_decoder, block)
    return (flops.embedder, *blocks, first + flops.expansion, *rest, flops.head)


def embedder_flops(model: ModelConfig, blocks: int) -> int:
    """Count the forward FLOPs of the embedder over `blocks` blocks."""
    embedder, block = model.embedder, model.block_decoder
    assert embedder is not None, "rules.py: a block model has an embedder"
    assert block is not None, "rules.py: a block model has a block decoder"
    count = 0
    if (encoder := encoder_stack(embedder)) is not None:
        positions = encoder_positions(model)
        count += encoder.num_layers * layer_flops(
            encoder, blocks * positions, blocks * positions**2
        )
    if has_projection(embedder):
        count += 2 * blocks * pooled_vectors(model) * embedder.hidden_size * block.hidden_size
    return count


def token_layer_flops(model: ModelConfig, blocks: int, convention: Convention) -> int:
    """Count the forward FLOPs of one token-decoder layer over `blocks` blocks."""
    token = model.token_decoder
    assert token is not None, "rules.py: a block model has a token decoder"
    positions = token_positions(model)
    count = layer_flops(token, blocks * positions, blocks * _pairs(positions, convention))
    if is_t5(model):
        tokens = blocks * model.block_length
        count += 2 * tokens * 4 * token.hidden_size**2
        count += _attention(token, tokens * model.block_length)
    return count


def layer_flops(stack: DecoderConfig, positions: int, pairs: int) -> int:
    """Count the forward FLOPs of one layer.

    Args:
        stack: Its widths.
        positions: Positions that pass the linear layers.
        pairs: (query, key) pairs of attention.
    """
    width, ffn = stack.hidden_size, stack.ffn_size
    qkv = (stack.num_attention_heads + 2 * stack.query_groups) * stack.head_dim
    heads = stack.num_attention_heads * stack.head_dim
    gated = 2 * ffn if stack.activation == "swiglu" else ffn
    weights = width * qkv + heads * width + width * gated + ffn * width
    return 2 * positions * weights + _attention(stack, pairs)


def _attention(stack: DecoderConfig, pairs: int) -> int:
    """Count scores and values: two products of width d for each head and pair."""
    return 2 * 2 * stack.num_attention_heads * stack.head_dim * pairs


def _pairs(length: int, convention: Convention) -> int:
    """Count the (query, key) pairs of self-attention over `length` positions."""
    return length**2 if convention == "full" else length * (length + 1) // 2


def _share(total: int, stack: DecoderConfig) -> Sequence[int]:
    """Divide the FLOPs of a stack among its equal layers."""
    return [total // stack.num_layers] * stack.num_layers
