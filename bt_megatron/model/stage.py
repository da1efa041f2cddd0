# SPDX-License-Identifier: Apache-2.0
"""What Megatron's pipeline schedules ask of a model chunk, and nothing else."""

from megatron.core.enums import ModelType
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from bt_megatron.model.transformer_config import StackConfig


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

    def set_input_tensor(self, input_tensor: Tensor | list[Tensor] | None) -> None:
        """Take what the previous stage sent: [rows/t, b, width], or nothing on the first."""
        self.input_tensor = input_tensor[0] if isinstance(input_tensor, list) else input_tensor
