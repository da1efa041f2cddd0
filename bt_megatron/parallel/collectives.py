# SPDX-License-Identifier: Apache-2.0
"""A record of the collectives that this process enters: which, of which ranks, how many.

The functions of `torch.distributed` are wrapped. A call costs about a microsecond more,
takes no lock and changes nothing. Only what a caller asked for is recorded, not what
torch's own functions call to do it (`all_gather_object` is one entry).

Megatron keeps some of these functions under names of its own, taken when it was
imported; those names are replaced as well, so it does not matter who comes first.
"""

import functools
import inspect
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d

GROUP_CALLS = (
    *("all_gather", "all_gather_into_tensor", "all_gather_object", "all_reduce", "all_to_all"),
    *("all_to_all_single", "barrier", "broadcast", "broadcast_object_list", "gather"),
    *("gather_object", "new_group", "reduce", "reduce_scatter", "reduce_scatter_tensor"),
    *("scatter", "scatter_object_list", "_all_gather_base", "_reduce_scatter_base"),
)
PEER_CALLS = {"isend": "dst", "send": "dst", "irecv": "src", "recv": "src"}
"""Point to point: the name of the argument that holds the other rank."""

KEEPS_ALIASES = ("megatron.", "transformer_engine.")


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a function of torch.distributed, as a subscriber gets it."""

    name: str
    """Name of the function, e.g. all_reduce."""
    ranks: str
    """Label of the ranks that take part, see `ranks_label`; "2>3" is sent from 2 to 3."""
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]


class Recorder:
    """What was entered so far. Other threads may read it at any time.

    Attributes:
        counts: calls entered, by label of ranks.
        last: name, label and time (`time.monotonic`) of the newest entry, or None.
        inside: 1 while a recorded call has not returned, else 0.
    """

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.last: tuple[str, str, float] | None = None
        self.inside = 0
        self._subscribers: list[Callable[[Call], None]] = []

    def subscribe(self, callback: Callable[[Call], None]) -> Callable[[], None]:
        """Call `callback` at each entry, in the thread that enters.

        Returns:
            A function that ends the subscription.
        """
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)

    def enter(
        self, name: str, ranks: str, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> None:
        """Note a call before it is made."""
        self.counts[ranks] = self.counts.get(ranks, 0) + 1
        self.last = (name, ranks, time.monotonic())
        for callback in self._subscribers:
            callback(Call(name, ranks, arguments, keywords))


@functools.cache
def install() -> Recorder:
    """Start to record, in this process, for good. Idempotent.

    Returns:
        The recorder of this process.
    """
    recorder = Recorder()
    wrappers: dict[int, Callable[..., Any]] = {}
    for name in (*GROUP_CALLS, *PEER_CALLS):
        original = getattr(dist, name, None) or getattr(distributed_c10d, name)
        wrappers[id(original)] = _recorded(recorder, name, original)
        if hasattr(dist, name):
            setattr(dist, name, wrappers[id(original)])
    # torch compares the operations of a batch with its own names of these two.
    distributed_c10d.isend, distributed_c10d.irecv = dist.isend, dist.irecv
    _replace_aliases(wrappers)
    return recorder


def ranks_label(ranks: Iterable[int]) -> str:
    """Write ranks as runs, e.g. "0-3, 8" or, evenly spaced, "0-12 by 4"."""
    ordered = sorted(ranks)
    steps = {b - a for a, b in zip(ordered, ordered[1:], strict=False)}
    if len(ordered) > 2 and len(steps) == 1 and steps != {1}:
        return f"{ordered[0]}-{ordered[-1]} by {steps.pop()}"
    runs: list[list[int]] = []
    for rank in ordered:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def ranks_of(label: str) -> list[int]:
    """Return the ranks that a label stands for, sender and receiver of "2>3"."""
    if ">" in label:
        return [int(rank) for rank in label.split(">")]
    runs, _, step = label.partition(" by ")
    ranks: list[int] = []
    for run in runs.split(", "):
        first, _, last = run.partition("-")
        ranks.extend(range(int(first), int(last or first) + 1, int(step or 1)))
    return ranks


def _recorded(recorder: Recorder, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    label = _label_of(name, original)

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        if recorder.inside or (ranks := label(args, kwargs)) is None:
            return original(*args, **kwargs)
        recorder.enter(name, ranks, args, kwargs)
        recorder.inside = 1
        try:
            return original(*args, **kwargs)
        finally:
            recorder.inside = 0

    return call


def _label_of(
    name: str, function: Callable[..., Any]
) -> Callable[[tuple[Any, ...], dict[str, Any]], str | None]:
    """Return how the ranks of a call follow from its arguments; None if we are not among them."""
    parameters = list(inspect.signature(function).parameters)
    group_at = parameters.index("group") if "group" in parameters else None
    labels: dict[str | None, str] = {}  # by name of the group; None is the default group

    def group_label(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        group = kwargs.get("group")
        if group is None and group_at is not None and len(args) > group_at:
            group = args[group_at]
        if isinstance(group, int):  # torch's mark for a group that we are not in
            return None
        key = None if group is None else group.group_name
        if key not in labels:
            labels[key] = ranks_label(dist.get_process_group_ranks(group))
        return labels[key]

    if name not in PEER_CALLS:
        return group_label
    peer = PEER_CALLS[name]

    def peer_label(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        other = kwargs.get(peer, args[1] if len(args) > 1 else None)
        if other is None and f"group_{peer}" in kwargs:
            group = kwargs.get("group") or dist.group.WORLD
            other = dist.get_global_rank(group, kwargs[f"group_{peer}"])
        if other is None:
            return None  # receive from anyone
        return f"{dist.get_rank()}>{other}" if peer == "dst" else f"{other}>{dist.get_rank()}"

    return peer_label


def _replace_aliases(wrappers: dict[int, Callable[..., Any]]) -> None:
    for module_name, module in list(sys.modules.items()):
        if module is None or not module_name.startswith(KEEPS_ALIASES):
            continue
        for attribute, value in list(vars(module).items()):
            if id(value) in wrappers:
                setattr(module, attribute, wrappers[id(value)])
