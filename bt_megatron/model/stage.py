# SPDX-License-Identifier: Apache-2.0
"""What Megatron's pipeline schedules ask of a model chunk, and nothing else."""

from typing import Any

from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.enums import ModelType
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from bt_megatron.model.transformer_config import StackConfig
from bt_megatron.model.weight_names import is_module_state, is_vocabulary_table


class PipelineStage(MegatronModule):
    """One pipeline stage of a model."""

    model_type = ModelType.encoder_or_decoder
    share_embeddings_and_output_weights = False

    def __init__(self, config: StackConfig, *, is_first: bool, is_last: bool) -> None:
        """Remember the place in the pipeline.

        Args:
            config: Megatron config that the schedule reads.
            is_first: whether this stage embeds the tokens.
            is_last: whether this stage has the head and the loss.
        """
        super().__init__(config=config)
        self.pre_process, self.post_process = is_first, is_last
        self.vp_stage = None
        self.input_tensor: Tensor | None = None

    def sharded_state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return Megatron's sharded state dict of the weights.

        Padded vocabularies fit each other, and the modules' own state is left out: that of a
        Transformer Engine module, scales of delayed FP8 scaling, would tie a checkpoint to it.

        Vocabularies are padded to a multiple of tp; the padding of one layout need not
        be that of the next.
        """
        state = super().sharded_state_dict(*args, **kwargs)
        for entry in state.values():
            if isinstance(entry, ShardedTensor) and is_vocabulary_table(entry.key):
                entry.allow_shape_mismatch = True
        return {key: entry for key, entry in state.items() if not is_module_state(key)}

    def set_input_tensor(self, input_tensor: Tensor | list[Tensor] | None) -> None:
        """Take what the previous stage sent: [rows/t, b, width], or nothing on the first."""
        self.input_tensor = input_tensor[0] if isinstance(input_tensor, list) else input_tensor
