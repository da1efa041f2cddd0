# SPDX-License-Identifier: Apache-2.0
"""Ranks that are about to run different things are found and told."""

import pytest

from bt_megatron.errors import ConfigError
from bt_megatron.faults.agreement import MAX_KEYS, describe_differences, require_same
from tests.ranks import run_ranks

FACTS = {"optimizer.lr": 3e-4, "name": "tiny", "data.path": None, "version of torch": "2.11.0"}


def test_the_same_is_no_difference():
    assert describe_differences({0: FACTS, 3: dict(FACTS)}) == ""


@pytest.mark.parametrize("of_rank_0", [True, False])
def test_what_is_not_known_is_no_difference(of_rank_0):
    unknown = {**FACTS, "version of torch": "unknown"}
    facts = {0: unknown, 1: FACTS} if of_rank_0 else {0: FACTS, 1: unknown}

    assert describe_differences(facts) == ""


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {3: {"optimizer.lr": 2e-4}},
            "rank 3 runs another configuration than rank 0: optimizer.lr 0.0003 (rank 0) vs "
            "0.0002 (rank 3)",
        ),
        (
            {2: {"name": "big"}, 3: {"name": "big"}, 5: {"name": "small"}},
            "ranks 2-3, 5 run another configuration than rank 0: name tiny (rank 0) vs "
            "big (ranks 2-3), small (rank 5)",
        ),
        (
            {1: {"version of torch": "2.10.0", "data.path": "x"}},
            "rank 1 runs another configuration than rank 0:\n"
            "  - data.path null (rank 0) vs x (rank 1)\n"
            "  - version of torch 2.11.0 (rank 0) vs 2.10.0 (rank 1)",
        ),
        ({1: {"model.new": 1}}, "model.new null (rank 0) vs 1 (rank 1)"),
    ],
    ids=["one", "several", "two keys", "unknown to rank 0"],
)
def test_ranks_keys_and_both_values_are_named(changes, expected):
    facts = {0: FACTS, **{rank: {**FACTS, **change} for rank, change in changes.items()}}

    message = describe_differences(facts)
    assert expected in message
    assert "Start all ranks with the same files, --set and installation." in message


def test_many_differences_are_counted():
    other = {f"key.{number:03}": 1 for number in range(MAX_KEYS + 5)}

    assert "and 5 more" in describe_differences({0: {}, 1: other})


def _agree(facts_of_rank, rounds):
    import torch.distributed as dist

    outcomes = []
    for _ in range(rounds):
        try:
            require_same(facts_of_rank.get(dist.get_rank(), FACTS))
            outcomes.append(None)
        except ConfigError as error:
            outcomes.append(str(error))
    return outcomes


def test_ranks_that_run_the_same_agree_each_time():
    assert run_ranks(_agree, 2, {}, 2) == [[None, None]] * 2


def test_every_rank_is_told_of_the_one_that_differs():
    (message, *_), *others = run_ranks(_agree, 3, {2: {**FACTS, "optimizer.lr": 1.0}}, 1)

    assert "optimizer.lr 0.0003 (rank 0) vs 1.0 (rank 2)" in message
    assert others == [[message]] * 2


def test_one_process_agrees_with_itself():
    assert run_ranks(_agree, 1, {}, 1) == [[None]]
