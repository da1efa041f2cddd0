# SPDX-License-Identifier: Apache-2.0
"""The head's losses are those of its logits, and Megatron's hooks see both."""

import pytest
import torch
from torch.nn import functional as F

from bt_megatron.config.schema import DecoderConfig, LayoutConfig
from bt_megatron.model.head import OutputHead, build_head
from bt_megatron.model.transformer_config import Computation, decoder_stack
from bt_megatron.parallel.groups import build_groups
from tests.ranks import run_ranks

VOCAB, PADDED, WIDTH = 21, 24, 16


def make_head(*, tied: bool) -> OutputHead:
    build_groups(LayoutConfig(), seed=0)
    decoder = DecoderConfig(num_layers=1, hidden_size=WIDTH, num_attention_heads=2)
    stack = decoder_stack(decoder, LayoutConfig(), Computation())
    return build_head(stack, vocab=PADDED, vocab_size=VOCAB, tied=tied)


def losses_and_logits(*, tied: bool) -> None:
    head = make_head(tied=tied)
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(PADDED, WIDTH)) if tied else None
    used = weight if tied else head.weight
    with torch.no_grad():
        used.normal_()
    used.main_grad, used.grad_added_to_main_grad = torch.zeros(PADDED, WIDTH), False
    hidden = torch.randn(5, 2, WIDTH, requires_grad=True)
    targets = torch.randint(VOCAB, (5, 2))
    called = []
    head.register_forward_pre_hook(lambda *_: called.append(True))

    logits = head(hidden, weight)
    losses = head(hidden, weight, targets=targets, chunk_rows=4)

    assert len(called) == 2, "weights are gathered by a hook on the module's call"
    assert logits.shape == (5, 2, PADDED)
    assert logits[..., VOCAB:].unique().tolist() == [float("-inf")]
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    torch.testing.assert_close(losses, expected.view(5, 2))
    (wanted,) = torch.autograd.grad(expected.sum(), used)
    losses.sum().backward()
    # A tied weight's other use adds to what autograd holds: nothing may go past autograd.
    got = used.grad if tied else used.main_grad
    torch.testing.assert_close(got, wanted)
    assert used.grad_added_to_main_grad is not tied


@pytest.mark.parametrize("tied", [False, True], ids=["own-weight", "tied"])
def test_losses_are_the_cross_entropy_of_the_logits(tied: bool) -> None:
    run_ranks(losses_and_logits, 1, tied=tied)
