# SPDX-License-Identifier: Apache-2.0
"""`pp_cut: auto`: where to cut a model into pipeline stages.

Pure arithmetic.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import NamedTuple

from bt_megatron.config.pipeline_schedule import BACKWARD_COST, step_time
from bt_megatron.errors import LayoutError
from bt_megatron.parallel.layout import contract

SIMULATED_GROUPS = 4
"""Micro-batches of the simulated step, in groups of pp."""

Cuts = tuple[int, ...]
"""Ends of the stages as numbers of pieces, with 0 in front."""


class Piece(NamedTuple):
    """Elements that stay together on one stage, and what they cost."""

    letters: str
    """One or more letters of a layout string, e.g. b, or tttL if these must not be cut."""
    cost: int
    """Work in any unit, such as FLOPs."""


def require_pieces(pieces: Sequence[Piece], *, pp: int, vpp: int) -> None:
    """Check that a model has a piece for each stage.

    Raises:
        LayoutError: if there are fewer pieces than stages.
    """
    if pp * vpp > len(pieces):
        raise LayoutError(
            f"layout.pp ({pp}) x layout.vpp ({vpp}) = {pp * vpp} stages are more than the number "
            f"of pieces the model can be cut into ({len(pieces)}). "
            f"Use a product of {len(pieces)} or less."
        )


@lru_cache(maxsize=64)
def balance_stages(pieces: tuple[Piece, ...], *, pp: int, vpp: int = 1) -> str:
    """Cut a model into stages so that the busiest stage has as little work as possible.

    Exact, by dynamic programming over the cuts. Among the layouts with the smallest
    maximum, the one with the smallest sum of squares is taken (the most even one);
    among those, the one with the later cuts, which leaves more to the first stages.

    With virtual stages these cuts are where a search starts: as long as moving one cut
    by one piece shortens the step of the simulated interleaved schedule (4 pp
    micro-batches), the move that shortens it most is made. The step is compared, not
    the work of the busiest rank, because at a time all ranks work on much the same
    chunk and wait for its busiest stage: equal sums can hide unequal stages.

    Args:
        pieces: The model from first to last element.
        pp: Pipeline-parallel size.
        vpp: Virtual stages of each process.

    Returns:
        A layout string of pp x vpp stages.

    Raises:
        LayoutError: if there are fewer pieces than stages.
    """
    require_pieces(pieces, pp=pp, vpp=vpp)
    ends = list(accumulate((piece.cost for piece in pieces), initial=0))
    cuts = _most_even_cuts(ends, pp * vpp, _smallest_maximum(ends, pp * vpp))
    if vpp > 1:
        cuts = _shorten_step(ends, cuts, pp)
    stages = ("".join(piece.letters for piece in pieces[a:b]) for a, b in pairwise(cuts))
    return "|".join(contract(stage) for stage in stages)


def _shorten_step(ends: Sequence[int], cuts: Cuts, pp: int) -> Cuts:
    """Move single cuts as long as the simulated step gets shorter."""
    best = _step(ends, cuts, pp)
    while True:
        moves = [
            (_step(ends, moved, pp), moved)
            for moved in _moved(cuts)
            if _least_step(ends, moved, pp) < best
        ]
        if not moves or min(moves)[0] >= best:
            return cuts
        best, cuts = min(moves)


def _moved(cuts: Cuts) -> Iterator[Cuts]:
    """Yield the cuts with one of them moved by one piece; no stage becomes empty."""
    for index in range(1, len(cuts) - 1):
        for cut in (cuts[index] - 1, cuts[index] + 1):
            if cuts[index - 1] < cut < cuts[index + 1]:
                yield (*cuts[:index], cut, *cuts[index + 1 :])


def _step(ends: Sequence[int], cuts: Cuts, pp: int) -> float:
    """Return the time of the simulated step."""
    work = [ends[b] - ends[a] for a, b in pairwise(cuts)]
    return step_time(work, pp=pp, micro_batches=SIMULATED_GROUPS * pp)


def _least_step(ends: Sequence[int], cuts: Cuts, pp: int) -> float:
    """Return what the simulated step takes at least: the work of its busiest rank."""
    work = [ends[b] - ends[a] for a, b in pairwise(cuts)]
    busiest = max(sum(work[rank::pp]) for rank in range(pp))
    return float((1 + BACKWARD_COST) * SIMULATED_GROUPS * pp * busiest)


def _smallest_maximum(ends: Sequence[int], stages: int) -> int:
    """Return the smallest possible work of the busiest stage.

    `best[e]` is that number for the first e pieces; each round adds one stage.
    """
    count = len(ends) - 1
    best = dict(enumerate(ends[1:], start=1))
    for stage in range(2, stages + 1):
        best = {
            end: min(max(best[cut], ends[end] - ends[cut]) for cut in range(stage - 1, end))
            for end in range(stage, count + 1)
        }
    return best[count]


def _most_even_cuts(ends: Sequence[int], stages: int, largest: int) -> Cuts:
    """Return the cuts with the smallest sum of squares among stages of at most `largest`.

    Cuts are kept negated, so that the smaller tuple is the one with the later cuts.
    """
    count = len(ends) - 1
    best: dict[int, tuple[int, Cuts]] = {0: (0, (0,))}
    for stage in range(1, stages + 1):
        grown: dict[int, tuple[int, Cuts]] = {}
        for end in range(stage, count + 1):
            options = [
                (squares + work * work, cuts)
                for cut, (squares, cuts) in best.items()
                if cut < end and (work := ends[end] - ends[cut]) <= largest
            ]
            if options:
                squares, cuts = min(options)
                grown[end] = squares, (*cuts, -end)
        best = grown
    return tuple(-cut for cut in best[count][1])
