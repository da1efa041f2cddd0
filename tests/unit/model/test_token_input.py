# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest
import torch

from bt_megatron.config.geometry import expanded_vectors, token_positions
from bt_megatron.config.schema import ModelConfig
from bt_megatron.model.token_input import fed_tokens, join, seen_positions
from tests.tiny_run import tiny_model

TARGETS = torch.arange(10, 34).view(1, 2, 12)


def model_of(strategy: str, *, block_length: int, prefix_length: int = 2) -> ModelConfig:
    model = tiny_model(block_length=block_length)
    decoder = replace(model.token_decoder, strategy=strategy, prefix_length=prefix_length)
    return replace(model, token_decoder=decoder)


@pytest.mark.parametrize(
    ("strategy", "fed"),
    [
        ("prefix", [10, 11, 12]),
        ("summation", [0, 10, 11, 12]),
        ("cross_attention", [1, 10, 11, 12]),
    ],
)
def test_last_token_of_a_block_is_never_fed(strategy: str, fed: list[int]) -> None:
    targets = TARGETS.view(1, 6, 4)
    assert fed_tokens(targets, model_of(strategy, block_length=4))[0, 0].tolist() == fed


@pytest.mark.parametrize("prefix_length", [1, 2, 6])
@pytest.mark.parametrize("block_length", [1, 3, 4, 12])
def test_rows_are_position_major(block_length: int, prefix_length: int) -> None:
    model = model_of("prefix", block_length=block_length, prefix_length=prefix_length)
    blocks = 24 // block_length
    expanded = torch.zeros(expanded_vectors(model), blocks, 1, 1)
    embedded = torch.arange(1.0, block_length).view(-1, 1, 1, 1).expand(-1, blocks, 1, 1)
    rows = join(expanded, embedded, "prefix").view(-1, blocks)
    assert rows.shape[0] == token_positions(model) == prefix_length + block_length - 1
    expected = [0.0] * prefix_length + [float(i) for i in range(1, block_length)]
    assert all(rows[:, block].tolist() == expected for block in range(blocks))


def test_pads_are_hidden_but_prefixes_never() -> None:
    model = model_of("prefix", block_length=4)
    mask = torch.tensor([[[False, False, True, True], [True, True, True, False]]])  # [b, n, k]
    seen = seen_positions(mask, model)  # [q, n*b]
    assert seen[:, 0].tolist() == [True, True, False, False, True]
    assert seen[:, 1].tolist() == [True, True, True, True, True]
