# SPDX-License-Identifier: Apache-2.0
"""Time that training is held up counts once."""

import time

import pytest

import bt_megatron.checkpoint.stall_clock as stall_clock
from bt_megatron.checkpoint.stall_clock import StallClock


@pytest.fixture
def now(monkeypatch):
    """A clock that is set by hand."""
    seconds = [100.0]
    monkeypatch.setattr(stall_clock, "time", type("Time", (), {"monotonic": lambda: seconds[0]}))
    return seconds


def test_contexts_inside_each_other_count_once(now):
    clock = StallClock()
    with clock.running():
        now[0] += 1
        with clock.running():
            now[0] += 2
        now[0] += 4
    now[0] += 8
    with clock.running():
        now[0] += 16

    assert clock.take() == 1 + 2 + 4 + 16
    assert clock.take() == 0


def test_what_is_running_is_taken_too(now):
    clock = StallClock()
    with clock.running():
        now[0] += 1
        assert clock.take() == 1
        now[0] += 2

    assert clock.take() == 2


def test_an_error_ends_it():
    clock = StallClock()
    with pytest.raises(OSError, match="full"), clock.running():
        raise OSError("full")

    clock.take()
    time.sleep(0.001)
    assert clock.take() == 0
