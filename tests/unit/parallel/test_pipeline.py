# SPDX-License-Identifier: Apache-2.0
import pytest

from bt_megatron.config.schema import BatchConfig, LayoutConfig
from bt_megatron.parallel.layout import parse_stages
from bt_megatron.parallel.pipeline import adjust_shapes, megatron_layout, sent_shapes
from tests.tiny_run import tiny_model

STAGES = parse_stages("Eb|b|t|tL")


def test_each_stack_gets_its_own_megatron_layout() -> None:
    block = [["embedding", "decoder"], ["decoder"], [], ["loss"]]
    token = [["embedding"], [], ["decoder"], ["decoder", "loss"]]
    assert megatron_layout(STAGES, "block") == block
    assert megatron_layout(STAGES, "token") == token
    assert megatron_layout(parse_stages("EbttL"), "block") is None


@pytest.mark.parametrize(("sequence_parallel", "cut"), [(False, 1), (True, 2)])
def test_context_embeddings_cross_before_the_first_token_layer(
    sequence_parallel: bool, cut: int
) -> None:
    layout = LayoutConfig(tp=2, pp=4, sequence_parallel=sequence_parallel)
    batch = BatchConfig(micro_batch_size=3)
    shapes = sent_shapes(tiny_model(), STAGES, layout, batch, seq_length=64)
    context, tokens = (16 // cut, 3, 64), (5 * 16 // cut, 3, 64)  # n = 16, q = 5
    assert shapes == [context, context, tokens, tokens]


def test_a_rank_receives_what_the_one_before_sends() -> None:
    shapes = [(1, 1, 1), (2, 1, 1), (3, 1, 1)]
    assert adjust_shapes(shapes, rank=0)([(9, 9, 9)], []) == ([(9, 9, 9)], [(1, 1, 1)])
    assert adjust_shapes(shapes, rank=2)([(9, 9, 9)], []) == ([(2, 1, 1)], [(3, 1, 1)])
