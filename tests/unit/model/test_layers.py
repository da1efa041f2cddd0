# SPDX-License-Identifier: Apache-2.0
"""Norms and residual sum in one pass each give the losses and gradients of separate operations."""

import pytest
import torch
from torch import Tensor

from bt_megatron.config.geometry import layer_letters
from bt_megatron.config.schema import LayoutConfig
from bt_megatron.model.build import build_stage
from bt_megatron.model.initialize import initialize_weights
from bt_megatron.model.layers import ParallelResidualLayer, residual_add
from bt_megatron.model.transformer_config import Computation
from bt_megatron.parallel.groups import build_groups
from bt_megatron.parallel.layout import parse_stages
from tests.ranks import run_ranks
from tests.small_models import VOCAB, small_model


def gradients(*, changes: dict, fused: bool) -> tuple[Tensor, dict[str, Tensor]]:
    build_groups(LayoutConfig(), seed=0)
    model = small_model(block_decoder=changes, token_decoder=changes)
    stages = parse_stages(layer_letters(model))
    stage = build_stage(model, LayoutConfig(), stages, Computation(dtype=torch.float64))
    initialize_weights(stage, model, seed=1)
    layers = [part for part in stage.modules() if isinstance(part, ParallelResidualLayer)]
    assert len(layers) == 4
    for layer in layers:
        layer.config.bias_dropout_fusion = layer.config.norm_pair = fused
    tokens = torch.randint(VOCAB, (2, 16))
    every = torch.ones_like(tokens, dtype=torch.bool)
    losses = stage(tokens, every, tokens.roll(-4, dims=1), every)
    losses.sum().backward()
    return losses.detach(), {name: param.grad for name, param in stage.named_parameters()}


@pytest.mark.parametrize(
    "changes",
    [{}, {"bias": False}, {"bias": False, "normalization": "rmsnorm"}],
    ids=["biases", "biases of norms", "no biases"],
)
def test_fused_parallel_layer_is_the_plain_one(changes: dict) -> None:
    ((plain_losses, plain),) = run_ranks(gradients, 1, changes=changes, fused=False)
    ((losses, fused),) = run_ranks(gradients, 1, changes=changes, fused=True)
    # Losses are float32, whatever the layers compute in, and so is what flows back from them.
    torch.testing.assert_close(losses, plain_losses, atol=0, rtol=1e-6)
    assert fused.keys() == plain.keys()
    for name, gradient in fused.items():
        torch.testing.assert_close(gradient, plain[name], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "separate"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_residual_add(fused: bool, training: bool, dropout: float) -> None:
    torch.manual_seed(0)
    output, bias = torch.randn(3, 2, 8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    expected = (output + bias) / (1 - dropout if training else 1.0)
    got = residual_add(training, fused)((output, bias), torch.zeros_like(output), dropout)
    kept = got != 0
    assert bool(kept.all()) == (not training or dropout == 0)
    torch.testing.assert_close(got[kept], expected[kept], atol=1e-14, rtol=0)
