# SPDX-License-Identifier: Apache-2.0
"""What Megatron's pipeline schedules ask of a model chunk, and nothing else."""

from collections.abc import Sequence
from typing import Any

from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.enums import ModelType
from megatron.core.transformer.module import MegatronModule
from megatron.core.utils import make_viewless_tensor
from torch import Tensor

from bt_megatron.config.schema import LayoutConfig
from bt_megatron.model.fp8 import one_pass
from bt_megatron.model.transformer_config import StackConfig
from bt_megatron.model.weight_names import is_module_state, is_vocabulary_table
from bt_megatron.parallel.layout import StageSlice
from bt_megatron.parallel.pipeline import stage_index


def own_slice(
    stages: Sequence[StageSlice], layout: LayoutConfig, vp_stage: int | None
) -> StageSlice:
    """Return what this process holds as its `vp_stage`-th stage.

    Comm: none.
    """
    rank = parallel_state.get_pipeline_model_parallel_rank()
    return stages[stage_index(rank=rank, vp_stage=vp_stage or 0, pp=layout.pp)]


class PipelineStage(MegatronModule):
    """One pipeline stage of a model."""

    model_type = ModelType.encoder_or_decoder
    share_embeddings_and_output_weights = False

    def __init__(self, config: StackConfig, mine: StageSlice, *, vp_stage: int | None) -> None:
        """Remember the place in the pipeline.

        Args:
            config: Megatron config that the schedule reads.
            mine: what this stage holds.
            vp_stage: number of the stage among those of this process; None: the only one.
        """
        super().__init__(config=config)
        self.pre_process, self.post_process = mine.has_embedder, mine.has_head
        self.vp_stage = vp_stage
        self.input_tensor: Tensor | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the stage on a micro batch, as one pass where FP8 keeps a history of passes.

        Comm: that of `forward` and of `one_pass`.
        """
        with one_pass(self):
            return super().__call__(*args, **kwargs)

    def sharded_state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return Megatron's sharded state dict of the weights.

        Padded vocabularies fit each other, and the modules' own state is left out: that of a
        Transformer Engine module, scales of delayed FP8 scaling, would tie a checkpoint to it
        (checkpoint/state.py keeps them apart).

        Vocabularies are padded to a multiple of tp; the padding of one layout need not
        be that of the next.
        """
        state = super().sharded_state_dict(*args, **kwargs)
        for entry in state.values():
            if isinstance(entry, ShardedTensor) and is_vocabulary_table(entry.key):
                entry.allow_shape_mismatch = True
        return {key: entry for key, entry in state.items() if not is_module_state(key)}

    @staticmethod
    def to_send(hidden: Tensor) -> Tensor:
        """Return the output of a stage as a tensor of its own.

        The schedule frees it once it is sent, which a view of another tensor cannot be.
        """
        return make_viewless_tensor(hidden, requires_grad=hidden.requires_grad, keep_graph=True)

    def set_input_tensor(self, input_tensor: Tensor | list[Tensor] | None) -> None:
        """Take what the previous stage sent: [rows/t, b, width], or nothing on the first."""
        self.input_tensor = input_tensor[0] if isinstance(input_tensor, list) else input_tensor
