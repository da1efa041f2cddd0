# SPDX-License-Identifier: Apache-2.0
"""Embedders: the k tokens of each block become one vector of width g. Shapes: shapes.py."""

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, VocabParallelEmbedding
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlock
from torch import Tensor
from torch.nn import functional as F

from bt_megatron.config.geometry import encoder_positions
from bt_megatron.config.schema import LayoutConfig, ModelConfig
from bt_megatron.model.layers import LayerNorm
from bt_megatron.model.specs import stack_spec
from bt_megatron.model.transformer_config import (
    Computation,
    StackConfig,
    encoder_stack,
    without_sequence_parallel,
)

CLS_TOKEN = 0
"""Id of the CLS tokens in front of a block; positions tell them apart (reference: embedder)."""
PAD_POSITION_TOKEN = 1
"""RoBERTa numbers positions over ids that differ from this one, its own pad id."""
NO_INIT = torch.nn.Identity()
"""Megatron asks for an initialiser even when it draws nothing (see initialize.py)."""


def build_embedder(
    model: ModelConfig,
    block_stack: StackConfig,
    layout: LayoutConfig,
    how: Computation,
    *,
    vocab: int,
) -> "LookupEmbedder | RobertaEmbedder":
    """Return the embedder that the model asks for.

    Args:
        model: the model.
        block_stack: Megatron config of the block decoder, whose width the vectors have.
        layout: tensor-parallel settings.
        how: data types, library of layers, what is computed again.
        vocab: v, rows of the token table, padded.
    """
    assert model.embedder is not None, "a block model has an embedder"
    if model.embedder.kind == "lookup":
        return LookupEmbedder(model, block_stack, vocab=vocab)
    return RobertaEmbedder(model, block_stack, layout, how, vocab=vocab)


def _linear_to_blocks(config: StackConfig, inputs: int) -> ColumnParallelLinear:
    # The input is whole on every rank, so no gather of a sequence-parallel input.
    return ColumnParallelLinear(
        inputs,
        config.hidden_size,
        config=config,
        init_method=NO_INIT,
        bias=True,
        gather_output=True,
        skip_bias_add=False,
    )


class LookupEmbedder(MegatronModule):
    """A table of narrow vectors, concatenated in token order (paper 2.2)."""

    def __init__(self, model: ModelConfig, config: StackConfig, *, vocab: int) -> None:
        """Build the table and, for uptraining, the projection.

        Args:
            model: the model.
            config: Megatron config of the block decoder.
            vocab: v, rows of the table.
        """
        super().__init__(config=config)
        assert model.embedder is not None, "a block model has an embedder"
        width = model.embedder.hidden_size
        self.table = VocabParallelEmbedding(vocab, width, init_method=NO_INIT, config=config)
        self.projection = None
        if model.embedder.projection:
            whole_rows = without_sequence_parallel(config)
            self.projection = _linear_to_blocks(whole_rows, model.block_length * width)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Embed.

        Pads are embedded like any token: the reference ignores the mask here.

        Args:
            tokens: [b, n, k] ids.
            mask: [b, n, k] bool, not used.

        Returns:
            [n, b, g], whole on every tensor-parallel rank.

        Comm: all-reduce of the table's output over the tp group.
        """
        batch, blocks, _ = tokens.shape
        vectors = self.table(tokens).reshape(batch, blocks, -1)  # [b, n, k*E]
        vectors = vectors.transpose(0, 1).contiguous()  # [n, b, k*E]
        return vectors if self.projection is None else self.projection(vectors)[0]


class RobertaEmbedder(MegatronModule):
    """A RoBERTa encoder over each block; its outputs (or its CLS outputs) are projected to g."""

    def __init__(
        self,
        model: ModelConfig,
        block_stack: StackConfig,
        layout: LayoutConfig,
        how: Computation,
        *,
        vocab: int,
    ) -> None:
        """Build tables, encoder and projection; arguments as `build_embedder`."""
        embedder = model.embedder
        assert embedder is not None, "a block model has an embedder"
        self.num_cls = embedder.num_cls_tokens
        config = encoder_stack(embedder, layout, how, positions=encoder_positions(model))
        super().__init__(config=config)
        width = embedder.hidden_size
        self.word = VocabParallelEmbedding(vocab, width, init_method=NO_INIT, config=config)
        self.position = torch.nn.Embedding(embedder.max_positions, width, dtype=how.dtype)
        self.token_type = torch.nn.Embedding(1, width, dtype=how.dtype)
        self.norm = LayerNorm(config, width, eps=config.layernorm_epsilon)
        spec = stack_spec(config, num_layers=embedder.num_layers, residual="post_norm")
        self.encoder = TransformerBlock(config, spec, post_layer_norm=False, pre_process=False)
        outputs = self.num_cls or model.block_length
        self.projection = _linear_to_blocks(without_sequence_parallel(block_stack), outputs * width)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Embed.

        Args:
            tokens: [b, n, k] ids.
            mask: [b, n, k] bool, False for pads, which the encoder does not attend to.

        Returns:
            [n, b, g], whole on every tensor-parallel rank.

        Comm: all-reduce of the table's output and those of the encoder over the tp group.
        """
        tokens = F.pad(tokens, (self.num_cls, 0), value=CLS_TOKEN)  # [b, n, c + k]
        mask = F.pad(mask, (self.num_cls, 0), value=True)
        batch, blocks, length = tokens.shape
        rows = self._embed(tokens).permute(2, 1, 0, 3)  # [q, n, b, E]
        self.encoder.set_input_tensor(rows.reshape(length * blocks, batch, -1))
        folded_mask = mask.permute(2, 1, 0).reshape(length, blocks * batch)
        encoded = self.encoder(None, attention_mask=folded_mask)
        encoded = encoded.view(length, blocks, batch, -1)[: self.num_cls or None]
        joined = encoded.permute(1, 2, 0, 3).reshape(blocks, batch, -1)  # [n, b, outputs*E]
        return self.projection(joined)[0]

    def _embed(self, tokens: Tensor) -> Tensor:
        counted = (tokens != PAD_POSITION_TOKEN).long()
        positions = counted.cumsum(dim=-1) * counted + PAD_POSITION_TOKEN
        summed = self.word(tokens) + self.token_type.weight[0] + self.position(positions)
        return F.dropout(self.norm(summed), self.config.hidden_dropout, self.training)
