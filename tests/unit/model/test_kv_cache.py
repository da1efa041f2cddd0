# SPDX-License-Identifier: Apache-2.0
"""Bytes of keys and values: those of the paper's models at 2,176 tokens, and of variants."""

from dataclasses import replace
from pathlib import Path

import pytest

from bt_megatron.config.load import load_model
from bt_megatron.model.kv_cache import KvCache, kv_cache

MODELS = Path(__file__).parents[3] / "configs/model"
# Megabytes (10**6) at 2048 + 128 tokens in bf16, derived from the paper's sizes: vanilla models,
# and block models without the cache of the token decoder.
MEGABYTES = {
    "vanilla-31m": 13.4,
    "vanilla-70m": 26.7,
    "vanilla-160m": 80.2,
    "vanilla-410m": 213.9,
    "block-33m": 1.7,
    "block-77m": 3.3,
    "block-170m": 10.0,
    "block-420m": 26.7,
    "block-1.2b": 53.5,
}


@pytest.mark.parametrize("name", MEGABYTES)
def test_the_papers_models(name):
    cache = kv_cache(load_model(MODELS / f"{name}.yaml"))
    assert round(cache.per_token * 2176 / 1e6, 1) == MEGABYTES[name]
    assert cache.per_sequence(2176) == round(cache.per_token * 2176) + cache.constant


def test_the_token_decoder_keeps_the_positions_of_one_block():
    model = load_model(MODELS / "block-170m.yaml")  # prefix 2, blocks of 4: 5 positions
    assert kv_cache(model).constant == 2 * 6 * 768 * 2 * 5
    summation = replace(model, token_decoder=replace(model.token_decoder, strategy="summation"))
    assert kv_cache(summation).constant == 2 * 6 * 768 * 2 * 4
    t5 = load_model(MODELS / "ablation-cls-cross-attention.yaml")  # and 4 vectors to attend to
    assert kv_cache(t5).constant == 2 * 6 * 768 * 2 * (4 + 4)


def test_longer_blocks_and_shared_heads_keep_less():
    model = load_model(MODELS / "block-170m.yaml")
    whole = kv_cache(model).per_token
    assert kv_cache(replace(model, block_length=8)).per_token == whole / 2
    grouped = replace(model.block_decoder, num_query_groups=3)
    assert kv_cache(replace(model, block_decoder=grouped)).per_token == whole / 4


def test_a_sequence_is_whole_bytes():
    assert KvCache(per_token=0.5, constant=3).per_sequence(5) == 5
