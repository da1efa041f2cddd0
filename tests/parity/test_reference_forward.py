# SPDX-License-Identifier: Apache-2.0
"""The trainer's models against outputs of the reference, in float32 on CPU."""

import pytest
import torch
from torch import Tensor

from bt_megatron.config.schema import LayoutConfig
from bt_megatron.model.build import build_whole_model
from bt_megatron.parallel.groups import build_groups
from tests.golden import BLOCK_MODELS, load_facts, load_golden
from tests.ranks import run_ranks

LOGIT_ATOL = 1e-5
# On top of that a few units in the last place: of the reference's own float32 logits the worst
# (RoBERTa, plain) is 1.08e-5 away from the same model computed in float64.
LOGIT_RTOL = 1e-6
LOSS_RTOL = 1e-6

CASES = [
    (name, case) for name in BLOCK_MODELS for case in load_facts(f"{name}/config.json")["cases"]
]


def forward(name: str, case: str) -> tuple[Tensor, Tensor]:
    build_groups(LayoutConfig(), seed=0)
    golden = load_golden(name)
    stage = build_whole_model(golden.model, golden.weights)
    batch = golden.batch(case)
    arguments = (batch.tokens, batch.mask, batch.targets, batch.target_mask)
    block_mask = golden.tensors[f"{case}.block_attention_mask"].bool()
    with torch.no_grad():
        logits = stage(*arguments, block_mask=block_mask, return_logits=True)
        losses = stage(*arguments, block_mask=block_mask)
    return logits, (losses * batch.target_mask).sum() / batch.target_mask.sum()


@pytest.mark.parametrize(("name", "case"), CASES)
def test_block_model_equals_the_reference(name: str, case: str) -> None:
    ((logits, loss),) = run_ranks(forward, 1, name, case)
    golden = load_golden(name)
    tensors, facts = golden.tensors, golden.config["cases"][case]
    expected = tensors[f"{case}.logits"]  # [B, N - 1, k, V]
    got = logits.view(*expected.shape[:1], -1, *expected.shape[2:])[:, :-1]
    # The reference does not compute what predicts a pad, and a block of pads sees the future.
    counts = tensors[f"{case}.attention_mask"][:, 1:].bool()
    counts &= tensors[f"{case}.block_attention_mask"][:, :-1, None].bool()
    assert counts.any()
    torch.testing.assert_close(got[counts], expected[counts], atol=LOGIT_ATOL, rtol=LOGIT_RTOL)
    if not facts["has_fully_padded_block"]:
        assert loss.item() == pytest.approx(facts["loss"], rel=LOSS_RTOL)


def vanilla_forward() -> tuple[Tensor, Tensor]:
    build_groups(LayoutConfig(), seed=0)
    golden = load_golden("vanilla_neox")
    tokens = golden.tensors["plain.input_ids"]
    stage = build_whole_model(golden.model, golden.weights)
    real = torch.ones_like(tokens, dtype=torch.bool)
    targets = tokens.roll(-1, dims=1)
    with torch.no_grad():
        logits = stage(tokens, real, targets, real, return_logits=True)
        losses = stage(tokens, real, targets, real)
    return logits, losses[:, :-1].mean()


def test_vanilla_model_equals_the_reference() -> None:
    ((logits, loss),) = run_ranks(vanilla_forward, 1)
    golden = load_golden("vanilla_neox")
    expected = golden.tensors["plain.logits"]
    torch.testing.assert_close(logits, expected, atol=LOGIT_ATOL, rtol=LOGIT_RTOL)
    assert loss.item() == pytest.approx(golden.config["plain_loss"], rel=LOSS_RTOL)
