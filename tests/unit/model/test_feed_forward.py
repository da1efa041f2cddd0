# SPDX-License-Identifier: Apache-2.0
"""The feed-forward part whose GELU adds the bias is Megatron-Core's."""

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from torch import Tensor

from bt_megatron.config.schema import DecoderConfig, LayoutConfig
from bt_megatron.model.feed_forward import GeluMlp
from bt_megatron.model.transformer_config import Computation, decoder_stack
from bt_megatron.parallel.groups import build_groups
from tests.ranks import run_ranks


def outcome(tp: int) -> list[list[Tensor]]:
    """Return output, bias and gradients of Megatron-Core's part and of ours."""
    layout = LayoutConfig(tp=tp)
    build_groups(layout, seed=0)
    decoder = DecoderConfig(num_layers=1, hidden_size=16, num_attention_heads=2)
    config = decoder_stack(decoder, layout, Computation())
    results: list[list[Tensor]] = []
    for kind in (MLP, GeluMlp):
        submodules = MLPSubmodules(ColumnParallelLinear, RowParallelLinear)
        part = kind(config, submodules, ffn_hidden_size=decoder.ffn_size)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for param in part.parameters():
                param.copy_(torch.randn(param.shape, generator=generator) * 0.5)
        hidden = torch.randn(6, 2, 16, generator=generator).requires_grad_()
        output, bias = part(hidden)
        upstream = torch.randn(output.shape, generator=generator)
        (output + bias).backward(upstream)
        grads = [param.grad for param in part.parameters()]
        results.append([output.detach(), bias.detach(), hidden.grad, *grads])
    return results


def test_numbers_are_those_of_megatron() -> None:
    for expected, got in run_ranks(outcome, 2, tp=2):
        assert len(got) == 7
        for mine, wanted in zip(got, expected, strict=True):
            assert torch.equal(mine, wanted)
