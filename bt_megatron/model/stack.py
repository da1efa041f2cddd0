# SPDX-License-Identifier: Apache-2.0
"""A stack of transformer layers."""

from megatron.core.transformer.transformer_block import TransformerBlock

from bt_megatron.config.schema import DecoderConfig
from bt_megatron.model.specs import stack_spec
from bt_megatron.model.transformer_config import StackConfig, with_fused_accumulation


def build_stack(
    config: StackConfig,
    decoder: DecoderConfig,
    *,
    num_layers: int,
    has_last: bool,
    cross_attention: bool = False,
    vp_stage: int | None = None,
) -> TransformerBlock:
    """Return this stage's layers of a decoder, with the final norm if the decoder ends here.

    Args:
        config: Megatron config of the stack.
        decoder: the decoder.
        num_layers: layers on this stage.
        has_last: whether the last layer is among them.
        cross_attention: whether each layer also attends to a context.
        vp_stage: number of this stage among those of this process; None: the only one.
    """
    if config.transformer_impl == "transformer_engine":
        config = with_fused_accumulation(config)
    spec = stack_spec(
        config,
        num_layers=num_layers,
        residual=decoder.residual,
        cross_attention=cross_attention,
    )
    return TransformerBlock(
        config, spec, pre_process=False, post_process=has_last, vp_stage=vp_stage
    )
