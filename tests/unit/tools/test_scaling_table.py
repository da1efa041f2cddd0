# SPDX-License-Identifier: Apache-2.0
import pytest

from tools.job_runner import TIME_IS_UP
from tools.scaling_cases import scaling_cases
from tools.scaling_table import GIB, HEADING, Measured, measured_line, plan_line, rows_of

CASES = {case.name: case for case in scaling_cases(8, is_tiny=False)}
ONE = {"tokens_per_s": 100_000.0, "losses": [10.8, 10.5]}


def measured(name="dp2/block-420m", baseline=ONE, error=None, **changes):
    value = {
        "losses": [10.8, 10.501],
        "step_s": [2.5, 2.75, 2.625],
        "tokens_per_s": 180_000.0,
        "mfu": 0.41,
        "memory": 30 * GIB,
        "exposed": 0.035,
        **changes,
    }
    value = {} if error else value
    return Measured(case=CASES[name], value=value, error=error, baseline=baseline)


def values(result):
    return {row.metric: row.value for row in rows_of([result], prefix="scale")}


def test_efficiency_is_in_units_of_as_many_alone():
    assert measured().efficiency == pytest.approx(0.9)
    assert measured("dp8/block-420m").efficiency == pytest.approx(0.225)


def test_the_loss_is_that_of_the_last_step():
    assert measured().loss_difference == pytest.approx(0.001)


@pytest.mark.parametrize(
    ("changes", "is_good"),
    [
        ({}, True),
        ({"losses": [10.8, 10.53]}, False),
        ({"losses": [10.8, float("nan")]}, False),
        ({"baseline": None}, True),
        ({"error": "rank 0: OSError"}, False),
    ],
    ids=["good", "another loss", "nan", "nothing to compare with", "failed"],
)
def test_a_layout_that_trains_another_model_is_not_good(changes, is_good):
    assert measured(**changes).is_good is is_good


def test_what_the_time_did_not_suffice_for_is_skipped():
    assert measured(error=TIME_IS_UP).is_skipped
    assert not measured(error="rank 0: OSError").is_skipped


def test_lines_stand_below_their_headings():
    line = measured_line(measured())
    assert line.split() == [
        *("dp2/block-420m", "180,000", "90.0%", "41.0%", "3.5%", "30.0", "25.2"),
        *("10.50100", "1.0e-03"),
    ]
    assert len(line) == len(HEADING)


def test_what_cannot_be_known_is_not_guessed():
    line = measured_line(measured(baseline=None, mfu=None, memory=None, exposed=None))
    assert line.split().count("n/a") == 5
    assert measured_line(measured(error="rank 0: OSError")).endswith(" rank 0: OSError")
    assert measured_line(measured(losses=[9.0])).endswith("ANOTHER LOSS")


def test_rows_are_what_was_measured():
    assert values(measured()) == {
        "tokens_per_s": 180_000.0,
        "efficiency": pytest.approx(0.9),
        "mfu": 0.41,
        "exposed_communication": 0.035,
        "peak_memory_gib": 30.0,
        "estimated_memory_gib": pytest.approx(25.16, abs=0.01),
        "loss_difference": pytest.approx(0.001),
    }
    assert {row.case for row in rows_of([measured()], prefix="scale")} == {"scale/dp2/block-420m"}


def test_rows_of_what_is_not_known_are_missing():
    known = values(measured(baseline=None, mfu=None, memory=None, exposed=None))
    assert set(known) == {"tokens_per_s", "estimated_memory_gib"}
    assert values(measured(error=TIME_IS_UP)) == {}


def test_details_say_what_a_number_stands_on():
    rows = {row.metric: row.detail for row in rows_of([measured()], prefix="scale")}
    assert rows["tokens_per_s"] == {
        "global_batch_size": 256,
        "seq_length": 2048,
        "micro_batch_size": 16,
        "micro_batches": 8,
        "step_ms": [2500.0, 2750.0, 2625.0],
        "stages": "Eb*12t*12L",
    }
    assert rows["loss_difference"] == {
        "step": 10,
        "sequences": 128,
        "loss": 10.501,
        "one_process": 10.5,
    }


def test_the_plan_of_a_case_is_a_line():
    assert plan_line(CASES["pp8/block-1.2b"]).split()[:8] == [
        *("pp8/block-1.2b", "8", "64", "x", "8", "1,048,576", "33.3", "9.9%"),
    ]
    assert plan_line(CASES["dp2/block-420m"]).endswith("0.0%")
