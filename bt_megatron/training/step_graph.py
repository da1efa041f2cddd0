# SPDX-License-Identifier: Apache-2.0
"""A training step as one CUDA graph: recorded once, then launched as a whole.

A step of a small model is thousands of kernels of a few microseconds, which the host cannot
launch as fast as they run. Replayed, they follow each other without it.

What the graph reads must stay where it is: micro-batches are copied into the tensors of
the recorded step, and learning rate, step number and the like are device tensors that are
written before. Python runs at the recording only, so nothing in a step may depend on
a value of the device, or change from step to step on the host.

Autograd runs a node on the stream of its forward pass, and Megatron's hooks make nodes when
a model is wrapped: all of that must be the stream that is recorded (`work_on_own_stream`).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bt_megatron.data.batches import MicroBatch

WARM_UP_STEPS = 3
"""Steps before the recording: kernels are compiled and workspaces allocated in them."""


def work_on_own_stream() -> None:
    """Leave the default stream, which cannot be recorded; call it before a model is built."""
    torch.cuda.set_stream(torch.cuda.Stream())


class StepGraph:
    """Launches a step directly at first, then from a graph."""

    def __init__(self, launch: Callable[[Sequence[MicroBatch]], Tensor]) -> None:
        """Bind what is recorded.

        Args:
            launch: takes micro-batches on the device and returns a tensor, without waiting for
                the device.
        """
        self._launch = launch
        self._launched = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[MicroBatch] = []
        self._outcome: Tensor | None = None

    def launch(self, batches: Sequence[MicroBatch]) -> Tensor:
        """Launch the step on micro-batches of the same number and shapes as before.

        Returns:
            What the bound function returns; it is overwritten by the next launch.

        Comm: the bound function's.
        """
        if self._launched < WARM_UP_STEPS:
            self._launched += 1
            return self._launch(batches)
        if self._graph is None:
            self._record(batches)
        for kept, given in zip(self._inputs, batches, strict=True):
            for target, source in zip(kept.tensors(), given.tensors(), strict=True):
                target.copy_(source)
        assert self._graph is not None, "recorded above"
        assert self._outcome is not None, "recorded above"
        self._graph.replay()
        return self._outcome

    def _record(self, batches: Sequence[MicroBatch]) -> None:
        self._inputs = [batch.each(Tensor.clone) for batch in batches]
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        # thread_local: other threads, which read batches or save checkpoints, may allocate.
        stream = torch.cuda.current_stream()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            self._outcome = self._launch(self._inputs)
        self._graph = graph
