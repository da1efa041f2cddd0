# SPDX-License-Identifier: Apache-2.0
"""A Block Transformer, or the slice of it that one pipeline stage holds. Shapes: shapes.py.

    tokens [b, s] --embedder--> [n, b, g] --block decoder--> [n, b, g] --expansion, tokens of the
    next block--> [q*n, b, h] --token decoder--> [q*n, b, h] --head--> losses [b, s]

Block j's output predicts block j + 1. All n rows are computed and the last, which
has no target, is masked: static shapes, and row counts that FP8 products accept.
"""

from typing import Any

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, VocabParallelEmbedding
from megatron.core.tensor_parallel.mappings import scatter_to_sequence_parallel_region
from torch import Tensor

from bt_megatron.config.geometry import expanded_vectors, is_t5, token_positions
from bt_megatron.config.schema import LayoutConfig, ModelConfig
from bt_megatron.model import token_input
from bt_megatron.model.embedder import NO_INIT, build_embedder
from bt_megatron.model.folded_self_attention import kernel_rotary, use_kernel
from bt_megatron.model.head import build_head, gather_rows, padded_vocab
from bt_megatron.model.relative_bias import RelativeBias
from bt_megatron.model.rotary import position_angles
from bt_megatron.model.slices import run_in_slices
from bt_megatron.model.stack import build_stack
from bt_megatron.model.stage import PipelineStage, own_slice
from bt_megatron.model.transformer_config import Computation, decoder_stack, recomputation
from bt_megatron.parallel.context import own_positions
from bt_megatron.parallel.layout import StageSlice
from bt_megatron.parallel.pipeline import megatron_layout


class BlockTransformerStage(PipelineStage):
    """The modules of one stage; those that other stages hold are None."""

    embedder: Any
    block_decoder: Any
    token_embedding: Any
    expansion: Any
    relative_bias: Any
    token_decoder: Any
    head: Any

    def __init__(
        self,
        model: ModelConfig,
        layout: LayoutConfig,
        stages: tuple[StageSlice, ...],
        how: Computation,
        *,
        vp_stage: int | None = None,
    ) -> None:
        """Build this rank's slice.

        Args:
            model: a block model.
            layout: parallel sizes.
            stages: what each pipeline stage holds.
            how: data types, library of layers, what is computed again.
            vp_stage: which of this process's stages; None: its only one.
        """
        assert model.block_decoder is not None, "a block model has a block decoder"
        assert model.token_decoder is not None, "a block model has a token decoder"
        mine = own_slice(stages, layout, vp_stage)
        block_stack = decoder_stack(
            model.block_decoder,
            layout,
            how,
            **recomputation(how.memory),
            context_parallel_size=layout.cp,
            pipeline_model_parallel_layout=megatron_layout(stages, "block"),
        )
        token_stack = decoder_stack(
            model.token_decoder,
            layout,
            how,
            dropout=model.token_decoder.dropout,
            fold_positions=token_positions(model),
            **recomputation(how.memory, in_slices=how.memory.token_slices > 1),
            softmax_scale=1.0 if is_t5(model) else None,
            pipeline_model_parallel_layout=megatron_layout(stages, "token"),
        )
        token_stack.token_kernel = use_kernel(
            how.token_attention, token_stack, relative_bias=is_t5(model)
        )
        super().__init__(block_stack, mine, vp_stage=vp_stage)
        self.model, self.token_stack = model, token_stack
        self._block_layers, self._token_layers = model.block_decoder, model.token_decoder
        self.vocab = padded_vocab(model.vocab_size, layout.tp)
        self.tied, self.token_slices = is_t5(model), how.memory.token_slices
        self.head_chunk_rows = how.head_chunk_rows
        self.embedder = None
        if mine.has_embedder:
            self.embedder = build_embedder(model, block_stack, layout, how, vocab=self.vocab)
        self._build_block_decoder(mine)
        self._build_token_input(mine)
        self._build_token_decoder(mine)
        self.head = None
        if mine.has_head:
            self.head = build_head(
                token_stack, vocab=self.vocab, vocab_size=model.vocab_size, tied=self.tied
            )

    def _build_block_decoder(self, mine: StageSlice) -> None:
        self.block_decoder = None
        if mine.block_layers:
            self.block_decoder = build_stack(
                self.config,
                self._block_layers,
                num_layers=mine.block_layers,
                has_last=mine.has_last_block_layer,
                vp_stage=self.vp_stage,
            )

    def _build_token_input(self, mine: StageSlice) -> None:
        self.token_embedding = self.expansion = self.relative_bias = None
        if not mine.has_first_token_layer:
            return
        stack = self.token_stack
        self.token_embedding = VocabParallelEmbedding(
            self.vocab, stack.hidden_size, init_method=NO_INIT, config=stack
        )
        self.expansion = ColumnParallelLinear(
            self.config.hidden_size,
            expanded_vectors(self.model) * stack.hidden_size,
            config=self.config,
            init_method=NO_INIT,
            bias=True,
            gather_output=True,
            skip_bias_add=False,
        )
        if self.tied:
            self.relative_bias = RelativeBias(stack.num_attention_heads, stack.params_dtype)

    def _build_token_decoder(self, mine: StageSlice) -> None:
        self.token_decoder = None
        if mine.token_layers:
            self.token_decoder = build_stack(
                self.token_stack,
                self._token_layers,
                num_layers=mine.token_layers,
                has_last=mine.has_last_token_layer,
                vp_stage=self.vp_stage,
                cross_attention=self.tied,
            )

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor,
        targets: Tensor,
        target_mask: Tensor,
        *,
        block_mask: Tensor | None = None,
        return_logits: bool = False,
    ) -> Tensor:
        """Run this stage on one micro batch.

        Args:
            tokens: [b, s] ids of the blocks that are read.
            mask: [b, s] bool, False for pads.
            targets: [b, s] ids, the tokens one block later.
            target_mask: [b, s] bool, True where the target is a real token.
            block_mask: [b, n] bool, False for blocks of pads only, which no other block may
                see. None: there are none, as in training data.
            return_logits: on the last stage, return logits instead of losses.

        Returns:
            The last stage: losses [b, s] in nats, float32, in the order of `targets`; or logits
            [b, s, v/t]. Other stages: [n/t, b, g] or [q*n/t, b, h] for the next stage.

        Comm: the tensor-parallel collectives of the layers.
        """
        blocks = (tokens.shape[0], -1, self.model.block_length)  # [b, n, k]
        tokens, mask = tokens.view(blocks), mask.view(blocks)
        targets, target_mask = targets.view(blocks), target_mask.view(blocks)
        hidden = self.input_tensor
        if self.embedder is not None:
            hidden = self._scatter(self.embedder(tokens, mask))
        if self.block_decoder is not None:
            hidden = self._decode_blocks(hidden, tokens.shape[1], block_mask)
        if self.token_decoder is None and self.head is None:
            return self.to_send(hidden)
        if self.token_slices > 1 and not return_logits:
            out = run_in_slices(
                self._write_blocks, hidden, targets, target_mask, slices=self.token_slices
            )
        else:
            out = self._write_blocks(hidden, targets, target_mask, return_logits=return_logits)
        return self.to_send(out) if self.head is None else out

    def _write_blocks(
        self, hidden: Tensor, targets: Tensor, target_mask: Tensor, *, return_logits: bool = False
    ) -> Tensor:
        """Run what this stage holds from the expansion on; blocks do not depend on each other."""
        context = None
        if self.expansion is not None:
            hidden, context = self._start_tokens(hidden, targets)
        if self.token_decoder is not None:
            hidden = self._decode_tokens(hidden, context, target_mask)
        if self.head is None:
            return hidden
        return self._predict(hidden, targets, return_logits=return_logits)

    def _scatter(self, rows: Tensor) -> Tensor:
        return scatter_to_sequence_parallel_region(rows) if self.config.sequence_parallel else rows

    def _decode_blocks(self, hidden: Tensor, blocks: int, block_mask: Tensor | None) -> Tensor:
        self.block_decoder.set_input_tensor(hidden)
        angles = position_angles(self._block_layers, own_positions(blocks, hidden.device))
        return self.block_decoder(None, attention_mask=block_mask, rotary_pos_emb=angles)

    def _start_tokens(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        vectors = expanded_vectors(self.model)
        expanded = token_input.expand(hidden, self.expansion, vectors=vectors)  # [r, n, b, h]
        fed = token_input.fed_tokens(targets, self.model)  # [b, n, k - 1 or k]
        embedded = self.token_embedding(fed).permute(2, 1, 0, 3)
        rows = token_input.join(expanded, embedded, self._token_layers.strategy)
        if not self.tied:
            return self._scatter(rows), None
        return self._scatter(rows), self._scatter(expanded.reshape(-1, *expanded.shape[2:]))

    def _decode_tokens(self, hidden: Tensor, context: Tensor | None, target_mask: Tensor) -> Tensor:
        self.token_decoder.set_input_tensor(hidden)
        return self.token_decoder(
            None,
            attention_mask=token_input.seen_positions(target_mask, self.model),
            context=context,
            rotary_pos_emb=self._token_rotary(target_mask.shape[1], hidden.device),
            attention_bias=(
                self.relative_bias(self.token_stack.fold_positions) if self.relative_bias else None
            ),
        )

    def _token_rotary(self, blocks: int, device: torch.device) -> Tensor | None:
        """Return what the token decoder's attention turns queries and keys by."""
        positions = self.token_stack.fold_positions
        assert positions, "the token decoder is a folded stack"
        if self.tied:  # T5 has a relative bias instead
            return None
        if self.token_stack.token_kernel:
            return kernel_rotary(self._token_layers, positions, device)
        index = torch.arange(positions, device=device).repeat_interleave(blocks)  # [q*n]
        return position_angles(self._token_layers, index)

    def _predict(self, hidden: Tensor, targets: Tensor, *, return_logits: bool) -> Tensor:
        batch, blocks, length = targets.shape
        hidden = gather_rows(hidden, self.token_stack)  # [q*n, b, h]
        hidden = hidden[-length * blocks :]  # [k*n, b, h], the rows that predict a token
        if self.tied:  # reference: T5 scales before its tied head
            hidden = hidden * self.token_stack.hidden_size**-0.5
        weight = self.token_embedding.weight if self.tied else None
        if return_logits:
            logits = self.head(hidden, weight)  # [k*n, b, v/t]
            return logits.view(length, blocks, batch, -1).permute(2, 1, 0, 3).flatten(1, 2)
        rows = targets.permute(2, 1, 0).flatten(0, 1)  # [k*n, b]
        losses = self.head(hidden, weight, targets=rows, chunk_rows=self.head_chunk_rows)
        return losses.view(length, blocks, batch).permute(2, 1, 0).reshape(batch, -1)
