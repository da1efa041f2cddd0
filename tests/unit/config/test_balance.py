# SPDX-License-Identifier: Apache-2.0
"""Where `auto` cuts a model."""

from itertools import accumulate, combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bt_megatron.config.balance import SIMULATED_GROUPS, Piece, balance_stages
from bt_megatron.config.pipeline_schedule import step_time
from bt_megatron.errors import LayoutError
from bt_megatron.parallel.layout import parse_stages, sum_by_stage


def pieces_of(costs):
    letters = f"E{'t' * (len(costs) - 2)}L"
    return tuple(Piece(*pair) for pair in zip(letters, costs, strict=True))


def works(costs, edges):
    return [sum(costs[a:b]) for a, b in pairwise(edges)]


def simulated(work, pp):
    return step_time(work, pp=pp, micro_batches=SIMULATED_GROUPS * pp)


@given(st.lists(st.integers(0, 50), min_size=3, max_size=9), st.data())
def test_balancing_is_as_good_as_trying_every_layout(costs, data):
    pp = data.draw(st.integers(1, len(costs)))

    found = list(sum_by_stage(costs, parse_stages(balance_stages(pieces_of(costs), pp=pp))))

    edges = ([0, *cuts, len(costs)] for cuts in combinations(range(1, len(costs)), pp - 1))
    every = [works(costs, each) for each in edges]
    best = min((max(w), sum(x * x for x in w)) for w in every)
    assert len(found) == pp
    assert (max(found), sum(x * x for x in found)) == best


@settings(deadline=None)
@given(
    st.sampled_from([(2, 2), (2, 3), (3, 2)]),
    st.lists(st.integers(1, 50), min_size=6, max_size=14),
)
def test_with_virtual_stages_no_single_move_shortens_the_step(sizes, costs):
    pp, vpp = sizes
    stages = parse_stages(balance_stages(pieces_of(costs), pp=pp, vpp=vpp))

    edges = list(accumulate((len(stage.letters) for stage in stages), initial=0))
    time = simulated(works(costs, edges), pp)
    even = parse_stages(balance_stages(pieces_of(costs), pp=pp * vpp))
    assert len(stages) == pp * vpp
    assert time <= simulated(sum_by_stage(costs, even), pp)
    for index in range(1, len(edges) - 1):
        for step in (-1, 1):
            moved = [*edges[:index], edges[index] + step, *edges[index + 1 :]]
            if all(a < b for a, b in pairwise(moved)):
                assert simulated(works(costs, moved), pp) >= time


@pytest.mark.parametrize(
    ("costs", "expected"),
    [
        ([0, *[1] * 6, 2], "Ett|tt|tt|L"),
        ([0, *[1] * 6, 4], "Ettt|t|tt|L"),
    ],
    ids=["even stages", "a heavy head: its process holds less before"],
)
def test_virtual_stages_are_cut_for_the_whole_step(costs, expected):
    assert balance_stages(pieces_of(costs), pp=2, vpp=2) == expected


def test_pieces_that_belong_together_are_not_cut():
    pieces = (Piece("E", 1), Piece("b", 5), Piece("b", 5), Piece("tttL", 20))

    assert balance_stages(pieces, pp=3) == "Eb|b|tttL"


def test_more_stages_than_pieces_are_refused():
    with pytest.raises(LayoutError, match=r"layout.pp \(2\) x layout.vpp \(2\) = 4 .*\(3\)"):
        balance_stages((Piece("E", 1), Piece("t", 1), Piece("L", 1)), pp=2, vpp=2)
