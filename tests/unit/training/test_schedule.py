# SPDX-License-Identifier: Apache-2.0
"""The learning rate equals the reference's, digit for digit."""

import json
from pathlib import Path

import pytest

from bt_megatron.config.schema import OptimizerConfig
from bt_megatron.training.schedule import learning_rate, schedule_value

FIXTURE = Path(__file__).parents[2] / "fixtures/reference/lr_schedule/lr.json"
SCHEDULES = json.loads(FIXTURE.read_text())["schedules"]


def optimizer_of(schedule, **changes):
    return OptimizerConfig(
        lr=schedule["base_lr"],
        min_lr_ratio=schedule["cos_min_ratio"],
        warmup=schedule["warmup_type"],
        warmup_steps=schedule["warmup_num_steps"],
        **changes,
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_entry_equals_the_reference(name):
    schedule = SCHEDULES[name]
    entries = schedule["lr_by_last_batch_iteration"]

    ours = {
        entry: schedule_value(
            int(entry),
            peak=schedule["base_lr"],
            min_ratio=schedule["cos_min_ratio"],
            warmup=schedule["warmup_type"],
            warmup_steps=schedule["warmup_num_steps"],
            decay_steps=schedule["total_num_steps"],
        )
        for entry in entries
    }

    assert len(entries) >= 13
    assert ours == entries


@pytest.mark.parametrize("name", SCHEDULES)
def test_step_n_uses_entry_n(name):
    schedule = SCHEDULES[name]
    optimizer, total = optimizer_of(schedule), schedule["total_num_steps"]

    for entry, rate in schedule["lr_by_last_batch_iteration"].items():
        assert learning_rate(int(entry), optimizer, total) == rate
    assert learning_rate(0, optimizer, total) == 0


def test_decay_steps_replace_the_number_of_steps():
    schedule = SCHEDULES["small_linear"]
    early = optimizer_of(schedule, decay_steps=40)

    assert learning_rate(20, early, 25) == learning_rate(20, optimizer_of(schedule), 40)
    assert learning_rate(20, early, 25) != learning_rate(20, optimizer_of(schedule), 25)


def test_the_rate_stays_at_the_minimum_after_the_cosine():
    optimizer = optimizer_of(SCHEDULES["small_linear"])
    last = learning_rate(39, optimizer, 40)

    assert last == pytest.approx(3e-5)
    assert {learning_rate(step, optimizer, 40) for step in (40, 41, 1000)} == {last}


def test_without_warmup_the_cosine_starts_at_once():
    optimizer = OptimizerConfig(lr=1.0, warmup_steps=0)

    rates = [learning_rate(step, optimizer, 10) for step in range(10)]

    assert rates == sorted(rates, reverse=True)
    assert 0.9 < rates[0] < 1.0
