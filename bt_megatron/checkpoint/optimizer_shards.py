# SPDX-License-Identifier: Apache-2.0
"""The state of a sharded optimizer as parts of whole tensors, where they lie, without a copy.

Megatron's sharded optimizer cuts its buffers into flat ranges, one a rank, which begin and end
in the middle of weights. Its own form that every layout can load gathers all of them on every
rank first. But a flat range of a tensor is a few boxes: part of a row, whole rows, part of a
row. Each rank saves its own boxes, under the names and shapes that Megatron's form has, so
nothing is sent, nothing is copied, and what is loaded does not know the difference.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor

PREFIX = "optimizer.state"
"""Of the names of optimizer state, as Megatron has them."""
STATES = ("param", "exp_avg", "exp_avg_sq")
"""AdamW's state of a weight: itself in float32, and both moments."""


@dataclass(frozen=True, slots=True)
class Box:
    """A part of a tensor whose elements follow each other in memory."""

    offset: tuple[int, ...]
    """Where it begins, along each axis."""
    shape: tuple[int, ...]
    """How far it goes along each axis."""

    @property
    def size(self) -> int:
        """Elements in it."""
        return math.prod(self.shape)


def boxes_of_range(shape: Sequence[int], start: int, stop: int) -> Iterator[Box]:
    """Yield the boxes that a flat range of a tensor consists of, in the order of memory.

    Args:
        shape: of the tensor, whose elements lie in row-major order.
        start: first element.
        stop: element after the last.
    """
    if start >= stop:
        return
    if len(shape) < 2:
        yield Box((start,) * len(shape), (stop - start,) * len(shape))
        return
    row = math.prod(shape[1:])
    first_whole, end_whole = -(-start // row), stop // row
    if first_whole > end_whole:  # inside of one row
        yield from _in_row(shape, end_whole, start, stop)
        return
    yield from _in_row(shape, first_whole - 1, start, first_whole * row)
    if first_whole < end_whole:
        yield Box((first_whole, *(0 for _ in shape[1:])), (end_whole - first_whole, *shape[1:]))
    yield from _in_row(shape, end_whole, end_whole * row, stop)


def _in_row(shape: Sequence[int], index: int, start: int, stop: int) -> Iterator[Box]:
    """Yield the boxes of a range that lies in one row of the first axis."""
    begin = index * math.prod(shape[1:])
    for box in boxes_of_range(shape[1:], start - begin, stop - begin):
        yield Box((index, *box.offset), (1, *box.shape))


def own_param_state(
    optimizer: DistributedOptimizer, weights: Sequence[ShardedTensor | ShardedTensorFactory]
) -> dict[int, dict[str, list[ShardedTensor]]]:
    """Return this rank's part of the optimizer state; the tensors are those of the optimizer.

    Args:
        optimizer: the sharded optimizer.
        weights: the sharded weights of this rank's stages.

    Comm: none.
    """
    by_weight = {id(entry.data): entry for entry in weights}
    state: dict[int, dict[str, list[ShardedTensor]]] = {}
    for weight, start, stop in _own_ranges(optimizer):
        parts = _whole_parts(by_weight[id(weight)])
        tensors = optimizer._get_main_param_and_optimizer_states(weight)
        for name in STATES:  # moments come with the first update; before it they are zero
            if name not in tensors:
                tensors[name] = torch.zeros_like(tensors["param"])
        state[len(state)] = {
            name: [
                piece
                for part in parts
                for piece in _pieces(part, weight, tensors[name], (start, stop), name)
            ]
            for name in STATES
        }
    return state


def _own_ranges(optimizer: DistributedOptimizer) -> Iterator[tuple[Tensor, int, int]]:
    """Yield each weight of which this rank holds optimizer state, and the flat range of it."""
    for ranges_by_type in optimizer.gbuf_ranges:
        for buckets in ranges_by_type.values():
            for bucket in buckets:
                for weight, ranges in bucket["param_map"].items():
                    yield weight, ranges["param"].start, ranges["param"].end


def _whole_parts(entry: ShardedTensor | ShardedTensorFactory) -> list[ShardedTensor]:
    """Return what a local weight is saved as; gate and up of SwiGLU are two tensors."""
    if isinstance(entry, ShardedTensor):
        return [entry]
    built: Any = entry.build()
    return list(built.values()) if isinstance(built, dict) else list(built)


def _pieces(
    part: ShardedTensor, weight: Tensor, state: Tensor, own: tuple[int, int], name: str
) -> Iterator[ShardedTensor]:
    """Yield the boxes of optimizer state that fall into one saved part of a weight.

    Args:
        part: a view of the weight, and where it lies in the whole tensor.
        weight: the local weight.
        state: [own range] one state of it, flat.
        own: the flat range of the weight that the state is of.
        name: of the state.
    """
    view = part.data
    assert view.is_contiguous(), f"{part.key} is cut along an inner axis"
    begin = (view.data_ptr() - weight.data_ptr()) // weight.element_size()
    start, stop = max(own[0], begin), min(own[1], begin + view.numel())
    done = start - own[0]
    for box in boxes_of_range(view.shape, start - begin, stop - begin):
        yield replace(
            part,
            key=f"{PREFIX}.{name}.{part.key}",
            data=state[done : done + box.size].view(box.shape),
            dtype=state.dtype,
            local_shape=box.shape,
            global_offset=tuple(
                there + inside for there, inside in zip(part.global_offset, box.offset, strict=True)
            ),
            axis_fragmentations=None,  # boxes follow no grid
            replica_id=(*part.replica_id[:-1], 0),  # no other data-parallel rank has it
        )
        done += box.size
