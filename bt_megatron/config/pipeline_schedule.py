# SPDX-License-Identifier: Apache-2.0
"""Megatron's pipeline schedules as lists of passes: how long they take, what they hold.

Stage i runs on pipeline rank i % pp as its chunk i // pp. With one chunk a rank runs
1F1B: pp - 1 - rank forward passes first, then one forward and one backward in turn,
then the remaining backward passes. With v chunks it runs the interleaved schedule:
micro-batches in groups of pp, each group through chunk 0, then through chunk 1, ...
(backward: through the last chunk first), and 2 (pp - 1 - rank) + (v - 1) pp forward
passes before the first backward. Both as in Megatron-Core's schedules.py
(get_pp_rank_microbatches, get_schedule_table), after Narayanan et al., 2104.04473,
section 2.2.

Pure arithmetic.
"""

from collections.abc import Sequence
from typing import NamedTuple

BACKWARD_COST = 2
"""Work of a backward pass in units of its forward pass, as in flops.py."""


class Pass(NamedTuple):
    """One micro-batch through one chunk of a rank, forward or backward."""

    is_forward: bool
    """Forward or backward."""
    chunk: int
    """Chunk of the rank, from 0."""
    micro_batch: int
    """Micro-batch, from 0."""


def rank_passes(rank: int, *, pp: int, vpp: int, micro_batches: int) -> list[Pass]:
    """Return what a rank does in a step, in its order.

    Args:
        rank: Pipeline rank.
        pp: Pipeline-parallel size.
        vpp: Chunks of each rank.
        micro_batches: Of one replica; a multiple of pp if vpp > 1.
    """
    assert vpp == 1 or micro_batches % pp == 0, "rules.py: groups of pp micro-batches"
    forward = _forward_order(pp=pp, vpp=vpp, micro_batches=micro_batches)
    backward = [Pass(False, vpp - 1 - item.chunk, item.micro_batch) for item in forward]
    ahead = pp - 1 - rank if vpp == 1 else 2 * (pp - 1 - rank) + (vpp - 1) * pp
    ahead = min(ahead, len(forward))
    alternating = zip(forward[ahead:], backward, strict=False)
    done = len(forward) - ahead
    return [*forward[:ahead], *(item for pair in alternating for item in pair), *backward[done:]]


def bubble_fraction(*, pp: int, micro_batches: int, vpp: int = 1) -> float:
    """Share of a step in which a rank waits: (pp - 1) / (m vpp + pp - 1).

    This is for stages of equal work (Narayanan et al., 2104.04473, section 2.2, which
    states it relative to the ideal time; here it is relative to the whole step).
    """
    return (pp - 1) / (micro_batches * vpp + pp - 1)


def idle_fraction(work: Sequence[float], *, pp: int, micro_batches: int) -> float:
    """Return the part of a step in which the ranks wait, on average over them.

    Plays the schedule with the work of each stage; a pass starts when its rank is free
    and its input is there, and messages take no time. So it counts the bubble and the
    imbalance of the stages, but no communication. With stages of equal work it is
    `bubble_fraction`.

    Args:
        work: Of a micro-batch's forward pass through each of the pp x vpp stages, in
            any unit.
        pp: Pipeline-parallel size.
        micro_batches: Of one replica.
    """
    busy = (1 + BACKWARD_COST) * micro_batches * sum(work)
    return 1 - busy / (pp * step_time(work, pp=pp, micro_batches=micro_batches))


def step_time(work: Sequence[float], *, pp: int, micro_batches: int) -> float:
    """Return how long a step takes in the unit of `work`; see `idle_fraction`."""
    vpp, last = len(work) // pp, len(work) - 1
    waiting = [
        rank_passes(rank, pp=pp, vpp=vpp, micro_batches=micro_batches)[::-1] for rank in range(pp)
    ]
    free = [0.0] * pp
    ends: dict[tuple[bool, int, int], float] = {}
    while any(waiting):
        for rank, passes in enumerate(waiting):
            while passes:
                is_forward, chunk, micro_batch = passes[-1]
                stage = chunk * pp + rank
                ready: float | None = 0.0
                if is_forward and stage > 0:
                    ready = ends.get((True, stage - 1, micro_batch))
                elif not is_forward and stage < last:
                    ready = ends.get((False, stage + 1, micro_batch))
                if ready is None:
                    break
                cost = work[stage] * (1 if is_forward else BACKWARD_COST)
                free[rank] = max(free[rank], ready) + cost
                ends[is_forward, stage, micro_batch] = free[rank]
                passes.pop()
    return max(free)


def peak_held(values: Sequence[int], *, pp: int, micro_batches: int) -> tuple[int, ...]:
    """Return the most that each rank holds between forward and backward passes.

    Args:
        values: What one micro-batch leaves on each of the pp x vpp stages from its
            forward to the end of its backward pass.
        pp: Pipeline-parallel size.
        micro_batches: Of one replica.
    """
    vpp = len(values) // pp
    peaks = []
    for rank in range(pp):
        held = peak = 0
        for item in rank_passes(rank, pp=pp, vpp=vpp, micro_batches=micro_batches):
            held += values[item.chunk * pp + rank] * (1 if item.is_forward else -1)
            peak = max(peak, held)
        assert held == 0, "every forward pass has its backward pass"
        peaks.append(peak)
    return tuple(peaks)


def _forward_order(*, pp: int, vpp: int, micro_batches: int) -> list[Pass]:
    """Return the forward passes of every rank: group by group, chunk by chunk."""
    return [
        Pass(True, chunk, micro_batch)
        for first in range(0, micro_batches, pp)
        for chunk in range(vpp)
        for micro_batch in range(first, min(first + pp, micro_batches))
    ]
