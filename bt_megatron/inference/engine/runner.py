# SPDX-License-Identifier: Apache-2.0
"""Runs steps: one CUDA graph per number of rows, and results that arrive while the next runs.

Graphs are captured when a number of rows is first needed, on rows without requests, so
that nothing of a running request is touched. They share their memory, since one runs at a
time. On a CPU a step simply runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bt_megatron.inference.engine.models import Model
from bt_megatron.inference.engine.requests import Request
from bt_megatron.inference.engine.rows import Rows, Wanted, make_rows

SMALL_BUCKETS = (1, 2, 4, 8, 16, 32, 48, 64)
LARGE_STEP = 64
NAMES = ("tokens", "logprobs", "whole", "top_ids", "top_logprobs")


def bucket(count: int, most: int) -> int:
    """Return the number of rows of the graph that `count` rows run in."""
    for size in SMALL_BUCKETS:
        if count <= size:
            return min(size, most)
    return min(-(-count // LARGE_STEP) * LARGE_STEP, most)


@dataclass(slots=True)
class Flight:
    """A step that was started, for the requests in its rows."""

    requests: Sequence[Request]
    results: dict[str, Tensor]
    """On the host, by name in Rows; valid after `wait`."""
    event: torch.cuda.Event | None

    def wait(self) -> None:
        """Wait until the results are there."""
        if self.event is not None:
            self.event.synchronize()


class StepRunner:
    """Starts steps of a model over the first rows."""

    def __init__(self, model: Model, rows: Rows, *, graphs: bool) -> None:
        """Take the model; `graphs`: run from CUDA graphs."""
        self.model, self.rows = model, rows
        self._graphs: dict[tuple[int, Wanted], torch.cuda.CUDAGraph] = {}
        self._use_graphs = graphs
        self._pool = torch.cuda.graph_pool_handle() if graphs else None
        self._on_gpu = rows.whole.is_cuda
        self._pinned = [self._host_buffers() for _ in range(2)] if self._on_gpu else []
        self._turn = 0

    def _host_buffers(self) -> dict[str, Tensor]:
        return {
            name: torch.empty_like(getattr(self.rows, name), device="cpu").pin_memory()
            for name in NAMES
        }

    def start(self, requests: Sequence[Request], wanted: Wanted) -> Flight:
        """Start a step of the rows of these requests."""
        count = len(requests)
        self.run(bucket(count, self.rows.count), wanted)
        names = NAMES if wanted.top else NAMES[:3]
        if not self._on_gpu:
            found = {name: getattr(self.rows, name)[:count].clone() for name in names}
            return Flight(requests, found, None)
        self._turn ^= 1
        buffers = self._pinned[self._turn]
        found = {name: buffers[name][:count] for name in names}
        for name, target in found.items():
            target.copy_(getattr(self.rows, name)[:count], non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return Flight(requests, found, event)

    def run(self, size: int, wanted: Wanted) -> None:
        """Run a step of the first `size` rows."""
        if self._use_graphs:
            self._graph(size, wanted).replay()
        else:
            self.model.step(self.rows.first(size), wanted)

    def _graph(self, size: int, wanted: Wanted) -> torch.cuda.CUDAGraph:
        key = (size, wanted)
        if key not in self._graphs:
            self._try_out(size, wanted)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                self.model.step(self.rows.first(size), wanted)
            self._graphs[key] = graph
        return self._graphs[key]

    def _try_out(self, size: int, wanted: Wanted) -> None:
        # Compiles kernels and sets up libraries, neither of which may happen in a capture.
        rows = self.rows
        spare = make_rows(
            size,
            tokens=rows.tokens.shape[1],
            pages=rows.table.shape[1],
            vocab_size=self.model.vocab_size,
            device=rows.whole.device,
        )
        self.model.step(spare, wanted)
        torch.cuda.synchronize()
