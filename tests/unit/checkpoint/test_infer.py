# SPDX-License-Identifier: Apache-2.0
"""Models of official checkpoints are found from shapes; what shapes do not say is asked."""

from dataclasses import replace

import pytest
import torch

from bt_megatron.checkpoint.infer import Choices, heads_by_width, infer_model
from bt_megatron.errors import ConversionError
from tests.golden import load_golden

HEADS = Choices(num_attention_heads=4)
ROBERTA = replace(HEADS, embedder="roberta_cls", embedder_num_attention_heads=2)


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("lookup_prefix_b4_p2", HEADS),
        ("lookup_prefix_b1_p1", replace(HEADS, strategy="prefix")),
        ("lookup_summation_b4", replace(HEADS, strategy="summation")),
        ("roberta_cls_prefix_b4_p1", replace(ROBERTA, block_length=4)),
        ("roberta_cls_cross_attention_b4", ROBERTA),
    ],
)
def test_golden_models(name, choices):
    golden = load_golden(name)
    found = infer_model(golden.state, choices)
    expected = golden.model
    if golden.model.token_decoder.strategy == "cross_attention":
        decoder = replace(expected.token_decoder, dropout=0.1)  # of the reference's T5
        expected = replace(expected, token_decoder=decoder)
    assert found == expected


@pytest.mark.parametrize(
    ("width", "heads"),
    [(128, 4), (256, 8), (512, 8), (768, 12), (1024, 16), (1536, 24), (2048, 16)],
)
def test_width_rule(width, heads):
    assert heads_by_width(width) == heads


def test_projection_tells_the_block_length():
    state = dict(load_golden("lookup_prefix_b4_p2").state)
    state["embedder.embeddings.weight"] = torch.zeros(512, 64)
    state["embedder.projection_layer.weight"] = torch.zeros(64, 64, 8)
    model = infer_model(state, HEADS)
    assert model.block_length == 8
    assert model.embedder.projection


@pytest.mark.parametrize(
    ("name", "choices", "message"),
    [
        ("lookup_summation_b4", HEADS, "Pass --strategy prefix or --strategy summation"),
        ("lookup_prefix_b4_p2", replace(HEADS, strategy="summation"), "makes 2"),
        ("lookup_prefix_b4_p2", replace(HEADS, block_length=8), "the tensors' shapes say 4"),
        ("lookup_prefix_b4_p2", replace(HEADS, num_attention_heads=5), "do not divide its width"),
        ("roberta_cls_prefix_b4_p1", HEADS, "Pass --embedder roberta or"),
        ("roberta_cls_prefix_b4_p1", ROBERTA, "Pass --block-length"),
        ("vanilla_neox", HEADS, "not a whole Block Transformer"),
    ],
    ids=["strategy", "summation", "length", "heads", "embedder", "cls length", "vanilla"],
)
def test_what_is_asked_or_refused(name, choices, message):
    with pytest.raises(ConversionError, match=message):
        infer_model(load_golden(name).state, choices)
