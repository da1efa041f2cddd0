# SPDX-License-Identifier: Apache-2.0
"""Sources are read in their shares, each sample in turn, and any position is found alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bt_megatron.data.interleave import Interleaving

LIMITS = st.none() | st.integers(1, 60)
SOURCES = st.lists(st.tuples(st.floats(0.01, 1), LIMITS), min_size=1, max_size=6)


def interleaving(sources):
    return Interleaving([weight for weight, _ in sources], [limit for _, limit in sources])


def merged(weights, limits, length):
    """Merge the sources by the exact time of each sample: (place + 1/2) / weight."""
    events = [
        ((2 * place + 1) / (2 * weight), source, place)
        for source, (weight, limit) in enumerate(zip(weights, limits, strict=True))
        for place in range(length if limit is None else limit)
    ]
    return [(source, place) for _, source, place in sorted(events)[:length]]


@pytest.mark.parametrize(
    ("weights", "limits"),
    [((5, 3, 2), (None, None, None)), ((5, 3, 2), (None, 4, 6)), ((1, 7), (3, None)), ((1,), (9,))],
    ids=["free", "limited", "rare and limited", "one"],
)
def test_sources_are_merged_by_time(weights, limits):
    plan = Interleaving(weights, limits)
    length = plan.capacity or 60
    located = plan.locate(np.arange(length))
    found = list(zip(located.source.tolist(), located.place.tolist(), strict=True))
    expected = merged(weights, limits, length)

    assert sorted(found) == sorted(expected)
    # Samples due within one tick, the time of one sample, may come in any order.
    due = {(s, place): (place + 0.5) / weights[s] * sum(weights) for s, place in expected}
    times = [due[event] for event in found]
    assert all(later >= earlier - 1 for earlier, later in zip(times, times[1:], strict=False))


@given(sources=SOURCES)
def test_each_source_gives_its_samples_in_turn_up_to_its_limit(sources):
    plan = interleaving(sources)
    length = min(plan.capacity or 300, 300)
    located = plan.locate(np.arange(length))
    for source, (_, limit) in enumerate(sources):
        places = located.place[located.source == source]
        assert places.tolist() == list(range(len(places)))
        assert limit is None or len(places) <= limit


@settings(max_examples=40)
@given(sources=SOURCES, start=st.integers(0, 10**12), size=st.integers(1, 12))
def test_positions_are_found_alone_as_in_a_row(sources, start, size):
    plan = interleaving(sources)
    if plan.capacity is not None:
        start, size = start % plan.capacity, min(size, plan.capacity - start % plan.capacity)
    positions = start + np.arange(size)
    row = plan.locate(positions)
    alone = [plan.locate(positions[i : i + 1]) for i in range(size)]

    assert row.source.tolist() == [int(one.source[0]) for one in alone]
    assert row.place.tolist() == [int(one.place[0]) for one in alone]
    grown = plan.counts(start + size) - plan.counts(start)
    assert grown.tolist() == np.bincount(row.source, minlength=len(sources)).tolist()
    assert plan.counts(start).sum() == start


@given(weights=st.lists(st.floats(1e-3, 1), min_size=1, max_size=8), position=st.integers(0, 10**6))
def test_shares_are_kept_within_a_few_samples(weights, position):
    counts = Interleaving(weights, [None] * len(weights)).counts(position)
    shares = np.array(weights) / sum(weights)
    assert np.abs(counts - shares * position).max() <= len(weights)


def test_shares_hold_at_the_end_of_the_longest_run():
    weights = np.array([0.7, 0.2, 0.0999, 0.0001])
    counts = Interleaving(weights, [None] * 4).counts(10**11)
    assert np.abs(counts / 10**11 / weights - 1).max() < 1e-5


def test_a_limit_ends_a_source_and_the_others_share_what_it_had():
    plan = Interleaving([2, 1, 1], [None, None, 10])
    end = plan.exhausted_at(2)
    late = plan.counts(end + 3000) - plan.counts(end)

    assert plan.counts(end)[2] == 10
    assert plan.counts(end - 3)[2] < 10
    assert late[2] == 0
    assert late[0] == pytest.approx(2000, abs=2)
    assert plan.exhausted_at(0) is None


def test_all_limits_together_are_the_capacity():
    plan = Interleaving([3, 1], [5, 40])
    assert plan.capacity == 45
    assert plan.counts(45).tolist() == [5, 40]
    assert Interleaving([3, 1], [5, None]).capacity is None


def test_a_single_source_is_read_in_order():
    located = Interleaving([0.3], [None]).locate(np.array([[0, 1], [10**14, 7]]))
    assert located.place.tolist() == [[0, 1], [10**14, 7]]
    assert not located.source.any()


def test_no_positions_are_nowhere():
    assert Interleaving([1, 2], [None, None]).locate(np.zeros((0, 3), np.int64)).source.size == 0
