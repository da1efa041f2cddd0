# SPDX-License-Identifier: Apache-2.0
"""Prefetching: in order, bounded, stoppable, and honest about errors."""

import threading
import time

import pytest

from bt_megatron.data.prefetch import PrefetchedBatches
from bt_megatron.errors import BtError, DataError


def _wait_until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.002)
    return condition()


def test_steps_come_in_order_from_the_first():
    with PrefetchedBatches(lambda step: step * step, first_step=7, depth=3) as batches:
        assert [next(batches) for _ in range(50)] == [step**2 for step in range(7, 57)]
        assert batches.step == 57


def test_reading_runs_ahead_by_no_more_than_the_depth():
    read = []
    with PrefetchedBatches(read.append, first_step=0, depth=3) as batches:
        assert _wait_until(lambda: read == [0, 1, 2])
        time.sleep(0.05)
        assert read == [0, 1, 2]
        next(batches)
        assert _wait_until(lambda: read == [0, 1, 2, 3])


def test_reading_happens_beside_the_consumer():
    names = set()
    with PrefetchedBatches(
        lambda step: names.add(threading.current_thread().name), first_step=0
    ) as batches:
        next(batches)
    assert names == {"prefetch"}


def test_close_ends_the_thread_and_may_be_repeated():
    before = threading.active_count()
    batches = PrefetchedBatches(lambda step: step, first_step=0)
    next(batches)
    batches.close()
    batches.close()
    assert threading.active_count() == before
    with pytest.raises(AssertionError, match="after close"):
        next(batches)


def test_leaving_by_an_exception_ends_the_thread():
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt), PrefetchedBatches(lambda step: step, first_step=0):
        raise KeyboardInterrupt
    assert threading.active_count() == before


def _failing_at(step, error):
    def read(current):
        if current == step:
            raise error
        return current

    return read


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        pytest.param(
            DataError("a.bin - damaged"), DataError, "step 12: a.bin - damaged", id="ours"
        ),
        pytest.param(
            OSError(5, "Input/output error"), DataError, "step 12: the data could", id="system"
        ),
    ],
)
def test_error_is_raised_at_its_step_and_names_it(error, kind, text):
    with PrefetchedBatches(_failing_at(12, error), first_step=10, depth=5) as batches:
        assert [next(batches), next(batches)] == [10, 11]
        for _ in range(2):  # again and again, never a hang
            with pytest.raises(kind) as raised:
                next(batches)
            assert str(raised.value).startswith(text)
            assert raised.value.__cause__ is error
        assert batches.step == 12


def test_own_mistake_keeps_its_type_and_gets_a_note():
    with PrefetchedBatches(_failing_at(3, KeyError("x")), first_step=3) as batches:
        with pytest.raises(KeyError) as raised:
            next(batches)
        assert not isinstance(raised.value, BtError)
        assert raised.value.__notes__ == ["while reading the batches of step 3"]
