# SPDX-License-Identifier: Apache-2.0
"""Build this rank's slice of a model, and run a whole model in one process."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bt_megatron.config.geometry import layer_letters
from bt_megatron.config.schema import LayoutConfig, ModelConfig
from bt_megatron.model.block_transformer import BlockTransformerStage
from bt_megatron.model.named_weights import load_named_weights
from bt_megatron.model.transformer_config import Computation
from bt_megatron.model.vanilla import VanillaStage
from bt_megatron.parallel.layout import StageSlice, parse_stages

Stage = BlockTransformerStage | VanillaStage


def build_stage(
    model: ModelConfig,
    layout: LayoutConfig,
    stages: Sequence[StageSlice],
    how: Computation,
    *,
    vp_stage: int | None = None,
) -> Stage:
    """Return this rank's stage, its weights not yet set.

    Args:
        model: the model.
        layout: parallel sizes; Megatron's groups exist.
        stages: what each pipeline stage holds.
        how: data types, library of layers, what is computed again.
        vp_stage: which of this process's stages; None: its only one.

    Comm: none.
    """
    kind = BlockTransformerStage if model.is_block else VanillaStage
    stage = kind(model, layout, tuple(stages), how, vp_stage=vp_stage)
    return stage.cuda() if torch.cuda.is_available() else stage


def build_whole_model(model: ModelConfig, weights: Mapping[str, Tensor]) -> Stage:
    """Return the whole model in this process, in float32, for evaluation.

    Args:
        model: the model.
        weights: canonical weights.

    Comm: none; a process group of one exists (parallel/groups.py).
    """
    stage = build_stage(model, LayoutConfig(), parse_stages(layer_letters(model)), Computation())
    load_named_weights(stage, weights)
    return stage.eval()


@torch.no_grad()
def reference_logits(weights: Mapping[str, Tensor], model: ModelConfig, tokens: Tensor) -> Tensor:
    """Return the training model's logits for whole blocks of real tokens, in float32.

    Args:
        weights: canonical weights.
        model: the model.
        tokens: [b, s] ids without pads, s a multiple of the block length.

    Returns:
        Block model: [b, s - k, v], entry i predicts token i + k (all but the first block).
        Vanilla model: [b, s - 1, v], entry i predicts token i + 1.

    Comm: none; a process group of one exists.
    """
    stage = build_whole_model(model, weights)
    shift = model.target_shift
    targets = torch.cat((tokens[:, shift:], torch.zeros_like(tokens[:, :shift])), dim=1)
    real = torch.ones_like(tokens, dtype=torch.bool)
    return stage(tokens, real, targets, real, return_logits=True)[:, :-shift]
