# SPDX-License-Identifier: Apache-2.0
"""The feed-forward part whose GELU adds the bias is Megatron-Core's, and an activation that is
computed again gives the gradients of one that is kept."""

from contextlib import nullcontext

import pytest
import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F

from bt_megatron.config.schema import DecoderConfig, LayoutConfig, MemoryConfig
from bt_megatron.model.feed_forward import FeedForward, computed_again
from bt_megatron.model.transformer_config import Computation, decoder_stack, recomputation
from bt_megatron.parallel.groups import build_groups
from tests.ranks import run_ranks


def outcome(tp: int, *, recompute: str, **style: object) -> list[list[Tensor]]:
    """Return output, bias and gradients of Megatron-Core's part and of ours."""
    layout = LayoutConfig(tp=tp)
    build_groups(layout, seed=0)
    decoder = DecoderConfig(num_layers=1, hidden_size=16, num_attention_heads=2, **style)
    again = recomputation(MemoryConfig(recompute=recompute))
    config = decoder_stack(decoder, layout, Computation(), **again)
    results: list[list[Tensor]] = []
    for kind in (MLP, FeedForward):
        submodules = MLPSubmodules(ColumnParallelLinear, RowParallelLinear)
        part = kind(config, submodules, ffn_hidden_size=decoder.ffn_size)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for param in part.parameters():
                param.copy_(torch.randn(param.shape, generator=generator) * 0.5)
        hidden = torch.randn(6, 2, 16, generator=generator).requires_grad_()
        output, bias = part(hidden)
        upstream = torch.randn(output.shape, generator=generator)
        (output if bias is None else output + bias).backward(upstream)
        grads = [param.grad for param in part.parameters()]
        bias = () if bias is None else (bias.detach(),)
        results.append([output.detach(), *bias, hidden.grad, *grads])
    return results


@pytest.mark.parametrize("recompute", ["none", "selective"])
@pytest.mark.parametrize(
    ("activation", "bias"), [("gelu", True), ("gelu", False), ("swiglu", True), ("relu", False)]
)
def test_numbers_are_those_of_megatron(activation: str, bias: bool, recompute: str) -> None:
    style = {"activation": activation, "bias": bias, "recompute": recompute}
    for expected, got in run_ranks(outcome, 2, tp=2, **style):
        assert len(got) == len(expected) == (7 if bias else 4)
        for mine, wanted in zip(got, expected, strict=True):
            assert torch.equal(mine, wanted)


def feed_forward(inside: Tensor, weight: Tensor, *, again: bool) -> Tensor:
    activated = F.gelu(inside)
    if not again:
        return activated.flatten(0, 1) @ weight
    with computed_again(activated, lambda: F.gelu(inside.detach())):
        return activated.flatten(0, 1) @ weight  # kept in another shape


def test_gradients_are_the_same_bit_for_bit() -> None:
    torch.manual_seed(0)
    inside, weight = torch.randn(8, 4, 32), torch.randn(32, 16)
    gradients = []
    for again in (False, True):
        factors = inside.clone().requires_grad_(), weight.clone().requires_grad_()
        feed_forward(*factors, again=again).square().sum().backward()
        gradients.append([factor.grad for factor in factors])
    for kept, repeated in zip(*gradients, strict=True):
        assert torch.equal(kept, repeated)


def test_only_the_value_itself_is_not_kept() -> None:
    value, other = torch.randn(4, 4), torch.randn(4, 4, requires_grad=True)
    calls = []

    def compute() -> Tensor:
        calls.append(1)
        return value

    with computed_again(value, compute):
        part, product = value[:2] * other[:2], other * other
    (part.sum() + product.sum()).backward()
    assert calls == [], "a part of the value is kept as it is"
    with computed_again(value, compute):
        product = value * other
    assert calls == []
    product.sum().backward()
    assert calls == [1]


def test_a_parameter_at_the_same_place_is_not_the_value() -> None:
    weight = torch.nn.Parameter(torch.randn(4, 4))
    with computed_again(weight, lambda: pytest.fail("the weight was computed")):
        product = torch.ones(4, 4, requires_grad=True) * weight
    product.sum().backward()
    assert torch.equal(weight.grad, torch.ones(4, 4))


@pytest.mark.parametrize("again", [False, True])
def test_the_output_is_freed_where_it_is_computed_again(again: bool) -> None:
    inside, weight = torch.randn(8, 4, 32, requires_grad=True), torch.randn(32, 16)
    activated = F.gelu(inside)
    place = StorageWeakRef(activated.untyped_storage())
    with computed_again(activated, lambda: F.gelu(inside)) if again else nullcontext():
        out = activated @ weight.requires_grad_()
    del activated
    assert place.expired() is again
    out.sum().backward()
    assert place.expired()
