# SPDX-License-Identifier: Apache-2.0
"""How long a phase may take is learned, and never for what depends on storage."""

import pytest

from bt_megatron.config.schema import FaultConfig
from bt_megatron.faults.progress import Progress
from bt_megatron.parallel.collectives import Recorder

FAULTS = FaultConfig(hung_rank_seconds=30, slow_phase_seconds=1800)


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def progress(recorder, clock):
    return Progress(FAULTS, recorder, clock)


def take(progress, clock, phase, seconds, *, step=1):
    progress.enter(phase, step)
    clock.now += seconds


def test_a_phase_is_told_with_its_step_and_time(progress, clock):
    take(progress, clock, "step", 3.0, step=7)
    place = progress.place()

    assert (place.phase, place.step, place.phase_s, place.stalled_s) == ("step", 7, 3.0, 3.0)
    assert place.collective is None


def test_a_collective_is_progress(progress, recorder, clock):
    take(progress, clock, "step", 10.0)
    recorder.counts["0-3"] = 5
    recorder.last, recorder.inside = ("all_reduce", "0-3", clock.now - 4.0), 1
    place = progress.place()

    assert (place.phase_s, place.stalled_s, place.collective_s) == (10.0, 4.0, 4.0)
    assert (place.collective, place.ranks, place.inside) == ("all_reduce", "0-3", True)
    assert place.counts == {"0-3": 5}


def test_time_in_which_the_process_was_suspended_is_no_stall(progress, clock):
    take(progress, clock, "step", 3600.0)

    assert progress.place(not_before=clock.now - 1.0).stalled_s == 1.0


def test_the_first_pass_may_take_long(progress, clock):
    assert progress.place().limit_s == 1800
    take(progress, clock, "step", 300.0)
    assert progress.place().limit_s == 1800


@pytest.mark.parametrize(
    ("seconds", "limit_s"),
    [([1.0], 30), ([40.0], 120), ([300.0, 20.0, 20.0], 60), ([300.0, 1.0, 1.0], 30)],
    ids=["short steps", "long steps", "a slow first step", "short steps after a slow first one"],
)
def test_later_passes_are_measured_by_the_median(progress, clock, seconds, limit_s):
    for passed in seconds:
        take(progress, clock, "step", passed)
        take(progress, clock, "data", 0.0)
    progress.enter("step", 9)

    assert progress.place().limit_s == limit_s


@pytest.mark.parametrize("phase", ["start", "checkpoint", "end"])
def test_storage_is_never_hurried(progress, clock, phase):
    for _ in range(3):
        take(progress, clock, phase, 1.0)

    assert progress.place().limit_s == 1800
