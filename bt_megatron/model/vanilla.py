# SPDX-License-Identifier: Apache-2.0
"""A vanilla GPT-NeoX, the baseline, in the same stack. Shapes: shapes.py."""

from typing import Any

from megatron.core.tensor_parallel import VocabParallelEmbedding
from megatron.core.tensor_parallel.mappings import scatter_to_sequence_parallel_region
from torch import Tensor

from bt_megatron.config.schema import LayoutConfig, ModelConfig
from bt_megatron.model.embedder import NO_INIT
from bt_megatron.model.head import build_head, gather_rows, padded_vocab
from bt_megatron.model.rotary import position_angles
from bt_megatron.model.stack import build_stack
from bt_megatron.model.stage import PipelineStage, own_slice
from bt_megatron.model.transformer_config import Computation, decoder_stack, recomputation
from bt_megatron.parallel.context import own_positions
from bt_megatron.parallel.layout import StageSlice
from bt_megatron.parallel.pipeline import megatron_layout


class VanillaStage(PipelineStage):
    """The modules of one stage; those that other stages hold are None."""

    token_embedding: Any
    decoder: Any
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
        """Build this rank's slice; arguments as BlockTransformerStage."""
        assert model.decoder is not None, "a vanilla model has a decoder"
        mine = own_slice(stages, layout, vp_stage)
        stack = decoder_stack(
            model.decoder,
            layout,
            how,
            **recomputation(how.memory),
            context_parallel_size=layout.cp,
            pipeline_model_parallel_layout=megatron_layout(stages, "token"),
        )
        super().__init__(stack, mine, vp_stage=vp_stage)
        self.head_chunk_rows = how.head_chunk_rows
        self.model, self._layers = model, model.decoder
        vocab = padded_vocab(model.vocab_size, layout.tp)
        self.token_embedding = self.decoder = self.head = None
        if mine.has_embedder:
            self.token_embedding = VocabParallelEmbedding(
                vocab, stack.hidden_size, init_method=NO_INIT, config=stack
            )
        if mine.token_layers:
            self.decoder = build_stack(
                stack,
                model.decoder,
                num_layers=mine.token_layers,
                has_last=mine.has_last_token_layer,
                vp_stage=vp_stage,
            )
        if mine.has_head:
            self.head = build_head(stack, vocab=vocab, vocab_size=model.vocab_size, tied=False)

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor,
        targets: Tensor,
        target_mask: Tensor,
        *,
        return_logits: bool = False,
    ) -> Tensor:
        """Run this stage on one micro batch.

        Args:
            tokens: [b, s] ids.
            mask: [b, s] bool; vanilla samples have no pads, so it is not used.
            targets: [b, s] ids, the next token of each.
            target_mask: [b, s] bool, not used here.
            return_logits: on the last stage, return logits instead of losses.

        Returns:
            The last stage: losses [b, s] in nats, float32, or logits [b, s, v/t]. Other stages:
            [s/t, b, h].

        Comm: the tensor-parallel collectives of the layers.
        """
        hidden = self.input_tensor
        if self.token_embedding is not None:
            hidden = self.token_embedding(tokens).transpose(0, 1).contiguous()  # [s, b, h]
            if self.config.sequence_parallel:
                hidden = scatter_to_sequence_parallel_region(hidden)
        if self.decoder is not None:
            self.decoder.set_input_tensor(hidden)
            angles = position_angles(self._layers, own_positions(tokens.shape[1], tokens.device))
            hidden = self.decoder(None, attention_mask=None, rotary_pos_emb=angles)
        if self.head is None:
            return self.to_send(hidden)
        hidden = gather_rows(hidden, self.config)  # [s, b, h]
        if return_logits:
            return self.head(hidden).transpose(0, 1)
        targets = targets.transpose(0, 1)  # [s, b]
        losses = self.head(hidden, targets=targets, chunk_rows=self.head_chunk_rows)
        return losses.transpose(0, 1)
