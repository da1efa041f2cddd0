# SPDX-License-Identifier: Apache-2.0
"""The copy in host memory: the values at the start, in memory that is used again."""

from dataclasses import replace

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor

import tests.ranks  # noqa: F401  imports Megatron for machines without CUDA
from bt_megatron.checkpoint.host_copy import ALIGNMENT, HostCopy


def entry(name, tensor, *, replica=0):
    return ShardedTensor.from_rank_offsets(name, tensor, replica_id=(0, 0, replica))


def state_of(*tensors):
    return {"model": {str(i): entry(str(i), tensor) for i, tensor in enumerate(tensors)}}


def test_later_changes_are_not_copied():
    weights = [torch.randn(3, 5), torch.arange(7.0), torch.randn(2, 2).bfloat16()]
    before = [weight.clone() for weight in weights]
    state, copy = state_of(*weights), HostCopy(torch.cuda.Event())
    copy.start(state)
    copy.wait()
    for weight in weights:
        weight.zero_()

    for found, expected in zip(state["model"].values(), before, strict=True):
        assert found.data.dtype == expected.dtype
        assert torch.equal(found.data, expected)
        # torch.save writes the whole storage of a tensor.
        assert found.data.untyped_storage().nbytes() == expected.numel() * expected.element_size()


def test_memory_is_taken_once():
    copy = HostCopy(torch.cuda.Event())
    assert copy.size == 0
    copy.reserve(state_of(torch.zeros(ALIGNMENT), torch.zeros(1)))
    assert copy.size == 4 * ALIGNMENT + ALIGNMENT

    places = []
    for value in (1.0, 2.0):
        state = state_of(torch.full((ALIGNMENT,), value), torch.full((1,), value))
        copy.start(state)
        copy.wait()
        places.append([found.data.data_ptr() for found in state["model"].values()])
        assert all((found.data == value).all() for found in state["model"].values())
    assert places[0] == places[1]

    copy.start(state_of(torch.zeros(2 * ALIGNMENT)))
    assert copy.size == 8 * ALIGNMENT


def test_what_another_rank_writes_is_left_alone():
    tensor = torch.ones(4)
    state = {"model": {"own": entry("own", tensor), "other": entry("other", tensor, replica=1)}}
    copy = HostCopy(torch.cuda.Event())
    copy.start(state)

    assert copy.size == ALIGNMENT
    assert state["model"]["other"].data is tensor
    assert state["model"]["own"].data.data_ptr() != tensor.data_ptr()


def test_empty_tensors_need_no_memory():
    state = {"model": {"none": replace(entry("none", torch.zeros(0)))}}
    HostCopy(torch.cuda.Event()).start(state)

    assert state["model"]["none"].data.numel() == 0
