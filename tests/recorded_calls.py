# SPDX-License-Identifier: Apache-2.0
"""Every operation that enters a process group, and how many bytes it moves.

The methods of torch's `ProcessGroup` are wrapped. All functions of `torch.distributed`, under
whatever name a library keeps them, end there, so nothing escapes that Python calls; gloo's own
count of operations is the check that nothing came from elsewhere.
"""

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

SILENT = {
    *("rank", "size", "name", "boxed", "unbox", "abort", "shutdown", "set_timeout"),
    *("get_group_store", "split_group", "merge_remote_group"),
}
"""Methods that move no tensors, besides those with an underscore."""
MOVING = {"_allgather_base", "_reduce_scatter_base"}


class Operation(NamedTuple):
    """What one call does."""

    name: str
    group: str
    """tp, cp, dp_cp, pp, model or world; else the ranks."""
    group_size: int
    peer: int | None
    """Pipeline rank of the other side of a send or recv."""
    bytes: int
    """Of the tensor that the group has in common."""
    is_backward: bool
    """Whether autograd was computing gradients."""


class Recording:
    """What was recorded, by operation, and the number of calls by torch's name of the group."""

    def __init__(self) -> None:
        self.operations: Counter[Operation] = Counter()
        self.calls: Counter[str] = Counter()


@contextlib.contextmanager
def recorded_calls() -> Iterator[Recording]:
    """Record what this process does inside the context, groups of one left out.

    Megatron's groups exist.

    Raises:
        AssertionError: gloo has carried out operations that were not recorded.
    """
    recording, names = Recording(), _group_names()
    methods = {
        name: method
        for name, method in vars(dist.ProcessGroup).items()
        if callable(method) and (name in MOVING or not name.startswith("_")) and name not in SILENT
    }
    before = _sequence_numbers()
    for name, method in methods.items():
        setattr(dist.ProcessGroup, name, _recorded(recording, names, name, method))
    try:
        yield recording
    finally:
        for name, method in methods.items():
            setattr(dist.ProcessGroup, name, method)
    after = _sequence_numbers()
    counted = {name: after[name] - before[name] for name in after if after[name] > before[name]}
    assert counted == dict(recording.calls), (counted, recording.calls)


def _recorded(
    recording: Recording, names: dict[str, str], name: str, method: Callable[..., Any]
) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(group: dist.ProcessGroup, *args: Any, **kwargs: Any) -> Any:
        recording.calls[group.group_name] += 1
        if group.size() > 1:
            is_backward = torch._C._current_graph_task_id() != -1
            for operation, size in _sizes(name, args):
                place = _place(names, group, name, args)
                recording.operations[Operation(operation, *place, size, is_backward)] += 1
        return method(group, *args, **kwargs)

    return call


def _sizes(name: str, args: tuple[Any, ...]) -> list[tuple[str, int]]:
    """Return operation and bytes of what a method is called with."""
    first, second = args[0], args[1] if len(args) > 1 else None
    match name:
        case "allreduce" | "allreduce_coalesced":
            return [("all_reduce", tensor.nbytes) for tensor in _list(first)]
        case "broadcast" | "send" | "recv":
            return [(name, tensor.nbytes) for tensor in _list(first)]
        case "_allgather_base" | "allgather_into_tensor_coalesced":  # outputs, inputs
            return [("all_gather", tensor.nbytes) for tensor in _list(first)]
        case "_reduce_scatter_base" | "reduce_scatter_tensor_coalesced":
            return [("reduce_scatter", tensor.nbytes) for tensor in _list(second)]
    return [(name, -1)]  # of which no plan knows


def _list(tensors: Any) -> list[Tensor]:
    return [tensors] if isinstance(tensors, Tensor) else list(tensors)


def _place(
    names: dict[str, str], group: dist.ProcessGroup, method: str, args: tuple[Any, ...]
) -> tuple[str, int, int | None]:
    """Return name and size of the group, and the pipeline rank of the other side.

    Between two pipeline processes Megatron sends one direction over the group of all.
    """
    pipeline = parallel_state.get_pipeline_model_parallel_group()
    if method in ("send", "recv"):
        other = dist.get_global_rank(group, args[1])
        if other in dist.get_process_group_ranks(pipeline):
            return "pp", pipeline.size(), dist.get_group_rank(pipeline, other)
    ranks = str(dist.get_process_group_ranks(group))
    return names.get(group.group_name, ranks), group.size(), None


def _group_names() -> dict[str, str]:
    """Return our names of Megatron's groups, by torch's names."""
    with_cp = {"with_context_parallel": True}
    groups = (
        ("tp", parallel_state.get_tensor_model_parallel_group()),
        ("cp", parallel_state.get_context_parallel_group()),
        ("dp_cp", parallel_state.get_data_parallel_group(**with_cp)),
        ("dp_cp", parallel_state.get_data_parallel_group(**with_cp, partial_data_parallel=True)),
        ("pp", parallel_state.get_pipeline_model_parallel_group()),
        ("model", parallel_state.get_model_parallel_group()),
        ("world", parallel_state.get_intra_distributed_optimizer_instance_group()),
        ("world", dist.group.WORLD),
    )
    return {group.group_name: name for name, group in groups}


def _sequence_numbers() -> dict[str, int]:
    """Return how many operations each group has carried out, by torch's names."""
    groups = dist.distributed_c10d._world.pg_map
    return {group.group_name: group._get_sequence_number_for_group() for group in groups}
