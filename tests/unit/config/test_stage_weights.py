# SPDX-License-Identifier: Apache-2.0
"""Weights of a process and buckets of gradients; tests/dist/test_comm.py compares with Megatron."""

from dataclasses import replace

import pytest

from bt_megatron.config.params import count_parameters
from bt_megatron.config.stage_weights import (
    MIN_BUCKET,
    Weight,
    bucket_sizes,
    padded_vocabulary,
    stage_weights,
)
from bt_megatron.config.stages import resolve_stages

MODELS = ("block-1.2b", "vanilla-410m", "ablation-roberta-prefix", "ablation-cls-cross-attention")
HALF = MIN_BUCKET // 2


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("pp", [1, 3])
def test_the_stages_have_all_parameters(load_published, model, pp):
    config = load_published(model, micro_batch_size=1)
    config = replace(config, layout=replace(config.layout, pp=pp))
    held = [weight for s in resolve_stages(config) for weight in stage_weights(config, s)]

    assert sum(weight.elements for weight in held) == count_parameters(config.model).total
    assert not any(weight.is_partial for weight in held)


def test_tensor_parallel_processes_hold_halves_and_whole_norms(make_run):
    one, two = make_run(), make_run({"layout.tp": 2, "layout.sequence_parallel": True})
    (stage,) = resolve_stages(one)
    norms_and_biases = 4 * 6 * 64 + 2 * 2 * 64  # two norms, two biases behind a sum; final norms

    whole = sum(weight.elements for weight in stage_weights(one, stage))
    half = stage_weights(two, stage)
    assert sum(w.elements for w in half if w.is_partial) == norms_and_biases
    assert sum(w.elements for w in half) == (whole + norms_and_biases) // 2


def test_the_vocabulary_is_padded(make_run):
    config = make_run({"model.vocab_size": 513, "layout.tp": 4})
    assert padded_vocabulary(config) == 516


@pytest.mark.parametrize(
    ("elements", "changes", "sizes"),
    [
        ((10, 100), {"distributed_optimizer": False}, (110,)),
        ((10, 100), {}, (256,)),  # 100, up to 128, 10, up to 256
        ((10, 100), {"cp": 3}, (384,)),  # a multiple of dp x cp = 6 too
        ((HALF, HALF, 7, HALF), {"overlap_grad_reduce": True}, (MIN_BUCKET + 128, HALF)),
        ((HALF, HALF), {}, (MIN_BUCKET,)),
        (
            (HALF, HALF, 7, HALF),
            {"overlap_grad_reduce": True, "distributed_optimizer": False},
            (MIN_BUCKET + 7, HALF),
        ),
        ((), {}, ()),
    ],
    ids=["plain", "padded", "cp", "overlap", "exactly one", "plain overlap", "nothing"],
)
def test_buckets_are_closed_from_the_end(make_run, elements, changes, sizes):
    config = make_run({f"layout.{key}": value for key, value in changes.items()})
    weights = [Weight(count) for count in elements]
    assert bucket_sizes(weights, config, dp=2, pp_rank=0) == sizes


def test_only_the_first_pipeline_rank_has_several_buckets(make_run):
    config = make_run({"layout.overlap_grad_reduce": True, "layout.pp": 2})
    weights = [Weight(MIN_BUCKET)] * 3
    assert len(bucket_sizes(weights, config, dp=2, pp_rank=0)) == 3
    assert len(bucket_sizes(weights, config, dp=2, pp_rank=1)) == 1


def test_buckets_grow_with_the_number_of_replicas(make_run):
    config = make_run({"layout.overlap_grad_reduce": True})
    weights = [Weight(MIN_BUCKET)] * 4
    assert len(bucket_sizes(weights, config, dp=80, pp_rank=0)) == 2
