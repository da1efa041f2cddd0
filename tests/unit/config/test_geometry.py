# SPDX-License-Identifier: Apache-2.0
"""Positions and vectors of each strategy (paper appendix F)."""

import pytest

from bt_megatron.config.geometry import (
    encoder_positions,
    expanded_vectors,
    layer_letters,
    pooled_vectors,
    token_positions,
)


@pytest.mark.parametrize(
    ("strategy", "prefix", "block", "vectors", "positions"),
    [
        ("prefix", 2, 4, 2, 5),
        ("prefix", 1, 4, 1, 4),
        ("prefix", 1, 1, 1, 1),
        ("prefix", 3, 8, 3, 10),
        ("summation", 2, 4, 4, 4),
        ("cross_attention", 2, 4, 4, 4),
    ],
)
def test_positions_of_the_token_decoder(make_run, strategy, prefix, block, vectors, positions):
    model = make_run(
        {
            "model.token_decoder.strategy": strategy,
            "model.token_decoder.prefix_length": prefix,
            "model.block_length": block,
        }
    ).model

    assert (expanded_vectors(model), token_positions(model)) == (vectors, positions)


@pytest.mark.parametrize(
    ("kind", "cls", "positions", "pooled"),
    [("lookup", 0, 4, 4), ("roberta", 0, 4, 4), ("roberta_cls", 3, 7, 3)],
)
def test_vectors_of_the_embedder(make_run, kind, cls, positions, pooled):
    model = make_run({"model.embedder.kind": kind, "model.embedder.num_cls_tokens": cls}).model

    assert (encoder_positions(model), pooled_vectors(model)) == (positions, pooled)


def test_letters_of_a_model(make_run):
    assert layer_letters(make_run().model) == "EbbttL"
