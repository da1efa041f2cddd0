# SPDX-License-Identifier: Apache-2.0
"""Pipeline schedules: order, time, and what is held, against closed forms and Megatron's."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bt_megatron.config.pipeline_schedule import (
    Pass,
    bubble_fraction,
    idle_fraction,
    peak_held,
    rank_passes,
    step_time,
)


@pytest.mark.parametrize(
    ("pp", "vpp", "micro_batches", "expected"),
    [
        (1, 1, 8, 0.0),
        (4, 1, 1, 0.75),
        (4, 1, 13, 3 / 16),
        (2, 1, 1, 0.5),
        (4, 2, 4, 3 / 11),
        (2, 4, 8, 1 / 33),
    ],
)
def test_the_bubble_is_the_idle_part_of_a_step(pp, vpp, micro_batches, expected):
    assert bubble_fraction(pp=pp, vpp=vpp, micro_batches=micro_batches) == expected


@pytest.mark.parametrize("vpp", [1, 2, 3, 4])
@pytest.mark.parametrize("pp", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("groups", [1, 2, 5])
def test_equal_stages_wait_as_the_closed_form_says(pp, vpp, groups):
    idle = idle_fraction([1.0] * (pp * vpp), pp=pp, micro_batches=groups * pp)

    assert idle == pytest.approx(bubble_fraction(pp=pp, vpp=vpp, micro_batches=groups * pp))


@pytest.mark.parametrize("micro_batches", [1, 2, 3, 5, 7])
def test_without_virtual_stages_any_number_of_micro_batches_works(micro_batches):
    idle = idle_fraction([1.0] * 4, pp=4, micro_batches=micro_batches)

    assert idle == pytest.approx(bubble_fraction(pp=4, micro_batches=micro_batches))


def test_unequal_stages_by_hand():
    """Two stages of work 1 and 2, one micro-batch: 1 + 2 + 4 + 2."""
    assert step_time([1, 2], pp=2, micro_batches=1) == 9
    assert idle_fraction([1, 2], pp=2, micro_batches=1) == pytest.approx(0.5)
    assert step_time([1, 2], pp=2, micro_batches=10) == 1 + 10 * (2 + 4) + 2


work_of_stages = st.sampled_from([(2, 1), (2, 2), (3, 1), (3, 2), (4, 3)]).flatmap(
    lambda sizes: st.tuples(
        st.just(sizes[0]),
        st.lists(st.integers(1, 9), min_size=sizes[0] * sizes[1], max_size=sizes[0] * sizes[1]),
    )
)


@given(work_of_stages, st.integers(1, 3))
def test_a_step_is_as_long_as_its_busiest_rank_and_a_micro_batch_alone(drawn, groups):
    pp, work = drawn
    micro_batches = groups * pp
    time = step_time(work, pp=pp, micro_batches=micro_batches)

    assert time >= 3 * micro_batches * max(sum(work[rank::pp]) for rank in range(pp))
    assert time >= 3 * sum(work)
    assert 0 <= idle_fraction(work, pp=pp, micro_batches=micro_batches) < 1


@pytest.mark.parametrize(("pp", "vpp", "micro_batches"), [(1, 1, 4), (4, 1, 6), (2, 3, 4)])
def test_every_pass_is_there_once_and_backward_follows_forward(pp, vpp, micro_batches):
    for rank in range(pp):
        passes = rank_passes(rank, pp=pp, vpp=vpp, micro_batches=micro_batches)
        both = {(chunk, m) for chunk in range(vpp) for m in range(micro_batches)}
        assert len(passes) == 2 * len(both)
        for chunk, m in both:
            assert passes.index(Pass(True, chunk, m)) < passes.index(Pass(False, chunk, m))


@pytest.mark.parametrize(("pp", "vpp", "micro_batches"), [(2, 2, 2), (2, 2, 6), (4, 3, 8)])
def test_the_interleaved_order_is_that_of_megatron(pp, vpp, micro_batches):
    schedules = pytest.importorskip("megatron.core.pipeline_parallel.schedules")
    table = schedules.get_schedule_table(micro_batches, vpp, pp)
    for rank in range(pp):
        group = SimpleNamespace(size=lambda: pp, rank=lambda rank=rank: rank)
        communicator = SimpleNamespace(
            pp_group=group, virtual_pipeline_model_parallel_size=vpp if vpp > 1 else None
        )
        _, _, warmup, _ = schedules.get_pp_rank_microbatches(
            micro_batches, vpp, pp, p2p_communicator=communicator
        )
        passes = rank_passes(rank, pp=pp, vpp=vpp, micro_batches=micro_batches)

        forward = [(p.micro_batch, p.chunk) for p in passes if p.is_forward]
        backward = [(p.micro_batch, vpp - 1 - p.chunk) for p in passes if not p.is_forward]
        first = next(i for i, p in enumerate(passes) if not p.is_forward)
        assert forward == backward == table
        assert first == min(warmup + 1, len(table))


@pytest.mark.parametrize(
    ("micro_batches", "expected"), [(8, (4, 3, 2, 1)), (2, (2, 2, 2, 1)), (1, (1, 1, 1, 1))]
)
def test_1f1b_holds_one_micro_batch_for_each_rank_behind(micro_batches, expected):
    assert peak_held([1, 1, 1, 1], pp=4, micro_batches=micro_batches) == expected


@pytest.mark.parametrize(
    ("groups", "expected"),
    [(1, (8, 8, 7, 5)), (4, (11, 9, 7, 5))],
    ids=["at most all there are", "2 (pp - 1 - rank) + (vpp - 1) pp + 1"],
)
def test_the_interleaved_schedule_holds_more(groups, expected):
    assert peak_held([1] * 8, pp=4, micro_batches=4 * groups) == expected


def test_chunks_of_different_size_are_held_as_many_times_as_they_run_ahead():
    """Rank 1 of 2 with 2 chunks runs 2 passes ahead: F0 F0 | F1 B1 F1 B1 | F0 B0 F0 B0 ..."""
    only_first = peak_held([0, 1, 0, 0], pp=2, micro_batches=8)
    only_second = peak_held([0, 0, 0, 1], pp=2, micro_batches=8)

    assert (only_first[1], only_second[1]) == (3, 1)
