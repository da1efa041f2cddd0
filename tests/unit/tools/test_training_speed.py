# SPDX-License-Identifier: Apache-2.0
import pytest

from bt_megatron.config.load import load_run
from bt_megatron.config.plan import make_plan
from tests.ranks import run_ranks
from tests.unit.tools.test_layout_cases import cases_of
from tools.layout_run import training_step
from tools.training_speed import (
    exposed_communication,
    forget_memory,
    peak_memory,
    ready_batches,
    time_alone,
    timed_step,
    utilisation,
)

H100 = "NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize(
    ("communication", "computation", "expected"),
    [
        ([], [(0, 9)], 0),
        ([(0, 4)], [], 4),
        ([(0, 4)], [(1, 2)], 3),
        ([(0, 4), (2, 6)], [], 6),
        ([(0, 4)], [(0, 9)], 0),
        ([(0, 2), (5, 8)], [(1, 6)], 3),
        ([(5, 8), (0, 2)], [(5, 6), (4, 7)], 3),
    ],
    ids=["none", "alone", "covered inside", "two streams", "hidden", "at both ends", "unordered"],
)
def test_time_alone_is_that_of_no_other_interval(communication, computation, expected):
    assert time_alone(communication, computation) == expected


def test_utilisation_is_of_all_devices():
    config = load_run(["configs/run/block-420m.yaml"]).config
    one, eight = (make_plan(config, size) for size in (1, 8))
    used = utilisation(one, 100_000, device=H100)
    assert used == pytest.approx(100_000 * one.flops.training_per_token / 989.4e12)
    assert utilisation(eight, 100_000, device=H100) == pytest.approx(used / 8)
    assert utilisation(one, 100_000, device="cpu") is None


def steps_on_cpu():
    (case,) = cases_of(1)
    forget_memory()
    with training_step(case.config) as step:
        timed = [
            timed_step(step, ready_batches(case.config, step=0), number=number)
            for number in range(2)
        ]
        exposed = exposed_communication(step, ready_batches(case.config, step=0), number=2)
    return timed, exposed, peak_memory()


def test_on_cpu_steps_are_timed_and_nothing_else():
    ((timed, exposed, memory),) = run_ranks(steps_on_cpu, 1)
    assert all(step.seconds > 0 for step in timed)
    assert timed[1].loss < timed[0].loss  # the same sequences again
    assert exposed is None
    assert memory is None
