# SPDX-License-Identifier: Apache-2.0
"""Who is at fault, from what the ranks said last."""

from dataclasses import replace

import pytest

from bt_megatron.faults.verdict import (
    SETTLE_S,
    Place,
    RankState,
    judge_signs,
    judge_silence,
    judge_stall,
)

DEAD_S = 30.0


def place(counts=None, *, collective="all_reduce", ranks="0-3", stalled_s=40.0, **changes):
    """Return where a rank is that has made no progress for 40 of 30 allowed seconds."""
    values = {
        "phase": "step",
        "step": 7,
        "phase_s": 41.0,
        "stalled_s": stalled_s,
        "limit_s": 30.0,
        "collective": collective,
        "ranks": ranks,
        "collective_s": stalled_s,
        "counts": counts if counts is not None else {"0-3": 10},
    }
    return Place(**{**values, **changes})


def states(*places, **changes):
    return [
        RankState(rank=rank, place=at, host="node", pid=100 + rank, started=1.0, **changes)
        for rank, at in enumerate(places)
    ]


def sign(table, rank, name, seconds, **changes):
    """Return the table with a sign of one rank."""
    return [
        replace(state, sign=name, sign_s=seconds, **changes) if state.rank == rank else state
        for state in table
    ]


def everyone(count=4):
    return states(*[place() for _ in range(count)])


def test_nothing_happened():
    table = states(*[place(stalled_s=1.0) for _ in range(4)])

    assert judge_signs(table) is None
    assert judge_silence(table, dead_rank_s=DEAD_S) is None
    assert judge_stall(table, dead_rank_s=DEAD_S) is None


def test_a_rank_that_is_gone_is_named_with_step_collective_and_who_waits():
    verdict = judge_signs(sign(everyone(), 2, "gone", SETTLE_S + 0.1))

    assert (verdict.kind, verdict.ranks, verdict.exit_code) == ("gone", [2], 8)
    assert "rank 2 (pid 102 on node) is gone" in verdict.headline
    assert "step 7 ('step')" in verdict.headline
    assert "all_reduce over ranks 0-3" in verdict.headline
    assert "ranks 0-1, 3 are in all_reduce" in verdict.headline
    assert len(verdict.details) == 4
    assert verdict.speaker == 0


def test_signs_are_collected_first():
    assert judge_signs(sign(everyone(), 2, "gone", SETTLE_S / 2)) is None


def test_signs_of_all_ranks_need_no_waiting():
    table = everyone(2)
    for rank in (0, 1):
        table = sign(table, rank, "left", 0.1 * rank, reason="error", exit_code=4)

    assert judge_signs(table).ranks == [1]


def test_if_rank_0_is_gone_rank_1_speaks():
    table = sign(everyone(), 0, "gone", SETTLE_S + 1)

    assert judge_signs(table).speaker == 1
    assert judge_signs([table[0], table[3]]).speaker == 1  # what rank 3 sees


@pytest.mark.parametrize("leaves_first", [True, False], ids=["told first", "noticed first"])
def test_a_dead_rank_is_the_cause_not_who_lost_the_connection_to_it(leaves_first):
    early, late = SETTLE_S + 1.0, SETTLE_S + 0.5
    table = sign(everyone(), 2, "gone", late if leaves_first else early)
    table = sign(
        table,
        *(1, "left", early if leaves_first else late),
        reason="RuntimeError: gloo",
        is_consequence=True,
    )

    assert (judge_signs(table).kind, judge_signs(table).ranks) == ("gone", [2])


def test_who_lost_the_connection_waits_and_speaks():
    table = sign(everyone(2), 1, "gone", 0.2)
    table = sign(table, 0, "left", 0.1, reason="RuntimeError: gloo", is_consequence=True)
    verdict = judge_signs(table)

    assert (verdict.ranks, verdict.speaker) == ([1], 0)
    assert "; rank 0 is in all_reduce over ranks 0-3 of step 7" in verdict.headline


def test_an_error_is_the_cause_not_a_process_that_ends_after_it():
    table = sign(everyone(), 1, "left", SETTLE_S + 1, reason="shard 3 is damaged", exit_code=4)
    table = sign(table, 2, "gone", SETTLE_S)
    verdict = judge_signs(table)

    assert (verdict.kind, verdict.ranks, verdict.exit_code) == ("left", [1], 4)
    assert "shard 3 is damaged" in verdict.headline


def test_a_failed_connection_alone_is_named():
    table = sign(everyone(), 3, "left", SETTLE_S + 1, reason="NCCL", is_consequence=True)

    assert judge_signs(replace_code(table, 3, 1)).ranks == [3]


def replace_code(table, rank, code):
    return [replace(s, exit_code=code) if s.rank == rank else s for s in table]


def test_ranks_that_end_together_are_named_together():
    table = sign(everyone(), 2, "gone", SETTLE_S + 1.0)
    table = sign(table, 3, "gone", SETTLE_S + 0.8)

    assert judge_signs(table).ranks == [2, 3]


def test_ranks_that_end_later_are_not_at_fault():
    table = sign(everyone(), 2, "gone", SETTLE_S + 3.0)
    table = sign(table, 3, "gone", SETTLE_S + 0.8)

    assert judge_signs(table).ranks == [2]


def test_who_has_finished_is_not_missed():
    table = sign(everyone(2), 1, "finished", 100.0)

    assert judge_signs(table) is None
    assert judge_silence(table, dead_rank_s=DEAD_S) is None
    assert judge_stall(table, dead_rank_s=DEAD_S) is None


def silent(table, rank, seconds, *, others_steps=0):
    return [
        replace(state, silent_s=seconds, others_steps=others_steps) if state.rank == rank else state
        for state in table
    ]


def test_a_silent_rank_is_named():
    verdict = judge_silence(silent(everyone(), 2, 31.0), dead_rank_s=DEAD_S)

    assert (verdict.kind, verdict.ranks, verdict.exit_code) == ("silent", [2], 8)
    assert "does not answer since 31 s (faults.dead_rank_seconds: 30)" in verdict.headline
    assert "ranks 0-1, 3 are in all_reduce" in verdict.headline


@pytest.mark.parametrize(
    ("seconds", "others_steps", "is_dead"),
    [(29.0, 0, False), (31.0, 0, True), (31.0, 1, True), (31.0, 2, False), (999.0, 50, False)],
    ids=["not yet", "no step since", "the step it was in", "alive", "long out of reach"],
)
def test_steps_prove_a_silent_rank_alive(seconds, others_steps, is_dead):
    table = silent(everyone(), 2, seconds, others_steps=others_steps)

    assert (judge_silence(table, dead_rank_s=DEAD_S) is not None) == is_dead


def test_a_rank_that_was_never_heard_of_is_named():
    table = [replace(s, pid=0) if s.rank == 1 else s for s in silent(everyone(), 1, 31.0)]

    assert "rank 1 (never heard of)" in judge_silence(table, dead_rank_s=DEAD_S).headline


def test_a_stall_waits_while_a_rank_is_silent():
    late = [place({"0-3": 9}), *[place() for _ in range(3)]]
    table = silent(states(*late), 0, 10.0)

    assert judge_stall(table, dead_rank_s=DEAD_S) is None
    assert judge_stall(silent(table, 0, 0.1), dead_rank_s=DEAD_S).ranks == [0]
    unreachable = silent(table, 0, 31.0, others_steps=9)
    assert judge_stall(unreachable, dead_rank_s=DEAD_S).ranks == [0]


def test_a_rank_that_works_keeps_all_from_being_stalled():
    table = states(place(), place(), place(stalled_s=2.0), place())

    assert judge_stall(table, dead_rank_s=DEAD_S) is None


def test_the_longest_limit_of_all_ranks_counts():
    table = states(place(), place(limit_s=1800.0, phase="checkpoint"), place(), place())

    assert judge_stall(table, dead_rank_s=DEAD_S) is None


def test_a_hung_rank_is_named_with_where_it_is_and_who_waits():
    table = states(
        *[place({"0-3": 11}), place({"0-3": 11})],
        place({"0-3": 10}, phase="data", stalled_s=41.0),
        place({"0-3": 11}),
    )
    verdict = judge_stall(table, dead_rank_s=DEAD_S)

    assert (verdict.kind, verdict.ranks, verdict.exit_code) == ("hung", [2], 8)
    assert "rank 2 (pid 102 on node) hangs: in step 7 ('data') since 41 s" in verdict.headline
    assert "ranks 0-1, 3 are in all_reduce over ranks 0-3" in verdict.headline


CULPRITS = {
    "one in each of two pairs": (
        [
            {"0-1": 5, "0, 2": 5},
            {"0-1": 6, "1, 3": 5},
            {"2-3": 6, "0, 2": 5},
            {"2-3": 5, "1, 3": 5},
        ],
        [0, 3],
    ),
    "chain to one": (
        [{"0-1": 6, "0, 2": 5}, {"0-1": 6}, {"2-3": 6, "0, 2": 4}, {"2-3": 5}],
        [3],
    ),
    "tensor ranks ahead of the data group": (
        [{"0-1": 90, "0, 2": 3}, {"0-1": 90}, {"2-3": 80, "0, 2": 2}, {"2-3": 81}],
        [2],
    ),
    # a pipeline of four in which the third stage stopped: activations came, gradients do not
    "pipeline": (
        [
            {"0>1": 4, "1>0": 1},
            {"0>1": 3, "1>2": 3, "2>1": 1, "1>0": 0},
            {"1>2": 2, "2>3": 1, "3>2": 0, "2>1": 0},
            {"2>3": 2, "3>2": 1},
        ],
        [2],
    ),
    "sender that has not sent": ([{"0>1": 4}, {"0>1": 5}, {}, {}], [0]),
    "receiver that has not received": ([{"0>1": 5}, {"0>1": 4}, {}, {}], [1]),
    "two hang": ([{"0-3": 5}, {"0-3": 6}, {"0-3": 5}, {"0-3": 6}], [0, 2]),
    "one has entered nothing": ([{"0-3": 1}, {"0-3": 1}, {"0-3": 1}, {}], [3]),
}


@pytest.mark.parametrize("name", CULPRITS)
def test_the_rank_that_waits_for_nobody_is_at_fault(name):
    counts, culprits = CULPRITS[name]
    verdict = judge_stall(states(*[place(entered) for entered in counts]), dead_rank_s=DEAD_S)

    assert (verdict.kind, verdict.ranks) == ("hung", culprits)


def test_different_collectives_are_told():
    table = states(place(), place(collective="barrier"), place(), place())
    verdict = judge_stall(table, dead_rank_s=DEAD_S)

    assert (verdict.kind, verdict.ranks) == ("stuck", [])
    assert "different collectives" in verdict.headline
    assert "rank 1 is in barrier over ranks 0-3" in verdict.headline


def test_ranks_that_wait_for_each_other_are_told():
    table = states(
        place({"0-1": 2, "0>1": 1}, ranks="0-1"),
        place({"0-1": 1, "0>1": 2}, ranks="0>1", collective="irecv"),
    )
    verdict = judge_stall(table, dead_rank_s=DEAD_S)

    assert verdict.kind == "stuck"
    assert "wait for each other" in verdict.headline
    assert "irecv from rank 0 to rank 1" in verdict.headline


def test_a_collective_that_all_have_entered_and_none_leaves_is_told():
    verdict = judge_stall(everyone(), dead_rank_s=DEAD_S)

    assert (verdict.kind, verdict.ranks) == ("stuck", [])
    assert "all have entered the same collectives" in verdict.headline


def test_a_stall_before_any_collective_is_told():
    nowhere = Place(phase="data", step=2, stalled_s=40.0, limit_s=30.0)
    verdict = judge_stall(states(nowhere, nowhere), dead_rank_s=DEAD_S)

    assert verdict.kind == "stuck"
    assert "step 2 ('data')" in verdict.headline


def test_a_thousand_ranks_fit_a_line():
    table = [
        replace(state, sign="gone", sign_s=SETTLE_S + 1) if 8 <= state.rank < 1000 else state
        for state in everyone(1024)
    ]
    verdict = judge_signs(table)

    assert "and 984 more (ranks 8-999)" in verdict.headline
    assert len(verdict.headline) < 700
