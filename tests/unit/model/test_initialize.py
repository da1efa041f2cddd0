# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest
import torch

import tests.ranks  # noqa: F401  imports Megatron for machines without CUDA
from bt_megatron.model.initialize import initial_weight
from bt_megatron.model.named_weights import Shard
from tests.golden import load_golden
from tests.tiny_run import tiny_model


def draw(name: str, *shape: int, model=None, seed: int = 0) -> torch.Tensor:
    shard = Shard(name, torch.empty(0), shape, tuple(slice(0, n) for n in shape))
    return initial_weight(shard, model or tiny_model(), seed=seed)


@pytest.mark.parametrize(
    ("name", "shape", "deviation"),
    [
        ("block_decoder.layers.0.mlp.linear_fc1.weight", (1024, 256), 0.02),
        ("embedder.table.weight", (512, 512), 0.02),
        ("head.weight", (512, 512), 0.02),
        ("expansion.weight", (1024, 256), 256**-0.5),
        ("embedder.projection.weight", (1024, 256), 256**-0.5),
    ],
)
def test_deviation(name: str, shape: tuple[int, int], deviation: float) -> None:
    weight = draw(name, *shape)
    assert weight.std().item() == pytest.approx(deviation, rel=0.02)
    assert weight.mean().item() == pytest.approx(0, abs=0.01 * deviation)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("block_decoder.final_layernorm.weight", 1.0),
        ("block_decoder.layers.1.input_layernorm.bias", 0.0),
        ("expansion.bias", 0.0),
    ],
)
def test_norms_and_biases(name: str, value: float) -> None:
    assert torch.equal(draw(name, 16), torch.full((16,), value))


def test_weights_depend_on_name_and_seed_only() -> None:
    name = "block_decoder.layers.0.mlp.linear_fc1.weight"
    assert torch.equal(draw(name, 8, 8), draw(name, 8, 8))
    assert not torch.equal(draw(name, 8, 8), draw(name, 8, 8, seed=1))
    assert not torch.equal(draw(name, 8, 8), draw(name.replace(".0.", ".1."), 8, 8))


def test_padding_of_the_vocabulary_is_zero_and_changes_no_other_row() -> None:
    model = tiny_model(vocab_size=10)
    padded, plain = draw("head.weight", 12, 4, model=model), draw("head.weight", 10, 4, model=model)
    assert torch.equal(padded[:10], plain)
    assert not padded[10:].any()


def test_t5_queries_are_drawn_smaller() -> None:
    model = load_golden("roberta_cls_cross_attention_b4").model
    name = "token_decoder.layers.0.self_attention.linear_qkv.weight"
    by_head = draw(name, 192, 64, model=model).view(4, 3, 16, 64)
    deviations = by_head.std(dim=(0, 2, 3))
    expected = torch.tensor([64**-0.5 * 16**-0.5, 64**-0.5, 64**-0.5])
    torch.testing.assert_close(deviations, expected, rtol=0.05, atol=0)
    plain = replace(model.token_decoder, strategy="summation")
    assert draw(name, 192, 64, model=replace(model, token_decoder=plain)).std() < 0.021
