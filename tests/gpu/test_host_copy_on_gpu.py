# SPDX-License-Identifier: Apache-2.0
"""The copy of a checkpoint in page-locked memory, and whether a forked process can read it."""

import multiprocessing

import pytest
import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from torch import Tensor

from bt_megatron.checkpoint.host_copy import HostCopy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def copied() -> tuple[Tensor, Tensor]:
    """What was on the GPU, and its copy; the original has changed since."""
    original = torch.randn(8 << 20, device="cuda")
    expected = original.cpu()
    entry = ShardedTensor.from_rank_offsets("weight", original, replica_id=(0, 0, 0))
    copy = HostCopy(torch.cuda.Event())
    copy.start({"weight": entry})
    copy.wait()
    original.zero_()
    torch.cuda.synchronize()
    return expected, entry.data


def test_memory_is_page_locked_and_holds_the_values(copied: tuple[Tensor, Tensor]) -> None:
    expected, copy = copied
    assert copy.is_pinned()
    assert torch.equal(copy, expected)


def test_a_forked_process_reads_it(copied: tuple[Tensor, Tensor]) -> None:
    expected, copy = copied
    context = multiprocessing.get_context("fork")
    found = context.Queue()
    child = context.Process(target=lambda: found.put(copy.numpy().tobytes()))
    child.start()
    got = found.get(timeout=60)
    child.join()
    assert got == expected.numpy().tobytes()


@pytest.mark.parametrize("recorded", [False, True], ids=["launched", "graph"])
def test_an_update_waits_for_the_copy(recorded: bool) -> None:
    """As TrainingStep does it: the event is waited for in front of the update, also in a graph."""
    may_update = torch.cuda.Event(external=True)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        may_update.record()
        weight = torch.ones(1 << 20, device="cuda")

        def update() -> None:
            torch.cuda.current_stream().wait_event(may_update)
            weight.add_(1.0)

        graph = torch.cuda.CUDAGraph()
        if recorded:
            torch.cuda.synchronize()
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                update()
        launch = graph.replay if recorded else update
        copy = HostCopy(may_update)
        for number in range(1, 4):
            entry = ShardedTensor.from_rank_offsets("weight", weight, replica_id=(0, 0, 0))
            copy.reserve({"weight": entry})
            with torch.cuda.stream(copy._stream):
                torch.cuda._sleep(500_000_000)  # clock cycles: some tenths of a second
            copy.start({"weight": entry})
            launch()
            copy.wait()
            assert (entry.data == float(number)).all(), "the copy holds what was there before"
            torch.cuda.synchronize()
            assert (weight == float(number + 1)).all(), "and the update came after it"
