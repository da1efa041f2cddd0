# SPDX-License-Identifier: Apache-2.0
"""Collectives are recorded once each, by whatever name they are called."""

import pytest
import torch
import torch.distributed as dist

from bt_megatron.parallel import collectives
from bt_megatron.parallel.collectives import ranks_label, ranks_of
from tests.ranks import run_ranks


@pytest.mark.parametrize(
    ("ranks", "label"),
    [
        ([0], "0"),
        ([3, 1, 2, 0], "0-3"),
        ([0, 2], "0, 2"),
        ([0, 4, 8, 12], "0-12 by 4"),
        ([0, 1, 4, 5], "0-1, 4-5"),
        ([0, 1, 2, 7], "0-2, 7"),
        (range(1024), "0-1023"),
    ],
    ids=str,
)
def test_labels_are_short_and_can_be_read_back(ranks, label):
    assert ranks_label(ranks) == label
    assert ranks_of(label) == sorted(ranks)


def test_a_label_of_a_message_names_sender_and_receiver():
    assert ranks_of("3>1") == [3, 1]


def _record():
    recorder = collectives.install()
    assert collectives.install() is recorder
    calls = []
    unsubscribe = recorder.subscribe(calls.append)
    rank = dist.get_rank()
    pair = dist.new_group([0, 1])
    dist.all_reduce(torch.ones(2), group=pair)
    dist.all_gather_object([None] * 3, rank)  # calls all_gather inside
    if rank < 2:
        dist.broadcast(torch.ones(2), 0, pair)
        other = 1 - rank
        batch = [
            dist.P2POp(dist.isend, torch.ones(2), other),
            dist.P2POp(dist.irecv, torch.zeros(2), other),
        ]
        for work in dist.batch_isend_irecv(batch):
            work.wait()
    if rank == 2:
        dist.send(torch.ones(1), 0)
    if rank == 0:
        dist.recv(torch.zeros(1), src=2)
    unsubscribe()
    dist.barrier()
    return [(call.name, call.ranks) for call in calls], recorder.counts, recorder.last[:2]


def test_calls_are_recorded_with_their_ranks():
    (calls, counts, last), (calls_1, _, _), (calls_2, counts_2, _) = run_ranks(_record, 3)

    assert calls == [
        ("new_group", "0-2"),
        ("all_reduce", "0-1"),
        ("all_gather_object", "0-2"),
        ("broadcast", "0-1"),
        ("isend", "0>1"),
        ("irecv", "1>0"),
        ("recv", "2>0"),
    ]
    assert counts == {"0-2": 3, "0-1": 2, "0>1": 1, "1>0": 1, "2>0": 1}
    assert last == ("barrier", "0-2")
    assert calls_1[:4] == calls[:4]
    assert calls_2 == [("new_group", "0-2"), ("all_gather_object", "0-2"), ("send", "2>0")]
    assert counts_2 == {"0-2": 3, "2>0": 1}


def _failure():
    recorder = collectives.install()
    with pytest.raises(TypeError):
        dist.all_reduce("no tensor")
    return recorder.inside, recorder.last[0]


def test_a_call_that_fails_is_over():
    assert run_ranks(_failure, 1) == [(0, "all_reduce")]


def _aliases():
    from megatron.core.tensor_parallel import layers, mappings

    before = layers.dist_reduce_scatter_func
    recorder = collectives.install()
    layers.dist_all_gather_func(torch.zeros(2), torch.ones(1))
    mappings.dist_reduce_scatter_func(torch.zeros(1), torch.ones(2))
    return recorder.counts, before is not layers.dist_reduce_scatter_func


def test_names_that_megatron_took_at_import_are_recorded():
    assert run_ranks(_aliases, 2) == [({"0-1": 2}, True)] * 2


def _time_of_a_call():
    import time

    work = dist.distributed_c10d.get_rank

    def run(function):
        start = time.perf_counter()
        for _ in range(20_000):
            function()
        return (time.perf_counter() - start) / 20_000

    recorded = collectives._recorded(collectives.Recorder(), "barrier", lambda group=None: work())
    return run(recorded) - run(work)


def test_recording_costs_microseconds():
    assert run_ranks(_time_of_a_call, 1)[0] < 20e-6
