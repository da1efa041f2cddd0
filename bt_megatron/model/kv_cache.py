# SPDX-License-Identifier: Apache-2.0
"""Bytes of keys and values that generating keeps, per sequence. A function of the model alone.

grows     with the context: 2 (k, v) x layers x key-value width, once per block in a block
          decoder (paper 2.3: 1 / L_B of a plain transformer's), once per token in a vanilla one
constant  of the token decoder, which starts anew with each block: its positions, and with
          cross-attention the vectors that it attends to
"""

from dataclasses import dataclass

from bt_megatron.config.geometry import expanded_vectors, token_positions
from bt_megatron.config.schema import DecoderConfig, ModelConfig

BYTES = 2
"""Of a number in bf16, in which models are served."""


@dataclass(frozen=True, slots=True)
class KvCache:
    """Bytes of one sequence."""

    per_token: float
    """Bytes that each token of the context adds."""
    constant: int
    """Bytes whatever the length."""

    def per_sequence(self, tokens: int) -> int:
        """Return the bytes of a sequence."""
        return round(self.per_token * tokens) + self.constant


def kv_cache(model: ModelConfig) -> KvCache:
    """Return the bytes of keys and values that a model keeps."""
    if not model.is_block:
        assert model.decoder is not None, "a vanilla model has a decoder"
        return KvCache(_per_position(model.decoder), 0)
    block, token = model.block_decoder, model.token_decoder
    assert block is not None, "a block model has a block decoder"
    assert token is not None, "a block model has a token decoder"
    positions = token_positions(model)
    if token.strategy == "cross_attention":
        positions += expanded_vectors(model)
    constant = round(_per_position(token) * positions)
    return KvCache(_per_position(block) / model.block_length, constant)


def _per_position(stack: DecoderConfig) -> float:
    """Return the bytes of one position in all layers."""
    return 2.0 * stack.num_layers * stack.query_groups * stack.head_dim * BYTES
