# SPDX-License-Identifier: Apache-2.0
"""Records: names, honesty about what is not known, refusal of what cannot be."""

import math
import re
from dataclasses import fields, replace
from pathlib import Path

import psutil
import pytest

from bt_megatron.data.mixture import Drawn
from bt_megatron.observe.record import (
    SCHEMA,
    EvaluationRecord,
    StepRecord,
    metric_values,
    to_json_object,
)
from bt_megatron.observe.system import sample_gpus, sample_host
from bt_megatron.training.reporter import drawn_metrics
from tests.unit.observe.test_system import fake_nvml

ROOT = Path(__file__).parents[3]

STEP = StepRecord(
    step=1200,
    total_steps=50_000,
    tokens=1200 * 524_288,
    loss=2.8134,
    grad_norm=0.41,
    lr=2.9e-4,
    skipped_steps=0,
    tokens_per_s=329_696.0,
    tokens_per_s_per_device=41_212.0,
    tokens_per_s_average=320_000.0,
    mfu=0.384,
    step_s=1.59,
    data_wait_fraction=0.008,
    eta_s=50_520.0,
    memory_gib=61.2,
    memory_total_gib=79.1,
)


def test_a_step_is_one_flat_object_with_the_documented_names():
    line = to_json_object(STEP, wall_time_s=1.5)
    described = {key: line[key] for key in line if "/" not in key}
    assert described == {
        "schema": SCHEMA,
        "kind": "step",
        "time": 1.5,
        "step": 1200,
        "total_steps": 50_000,
    }
    assert line["train/loss"] == 2.8134
    assert line["train/tokens"] == 1200 * 524_288
    assert line["perf/tokens_per_s_per_gpu"] == 41_212.0
    assert line["mem/peak_reserved_gib"] == 61.2
    assert line["perf/mfu"] == 0.384


def test_every_measured_field_is_reported_once():
    measured = {f.name for f in fields(STEP)} - {"step", "total_steps"}
    values = metric_values(STEP)
    assert len(values) == len(measured)
    assert sorted(map(str, values.values())) == sorted(str(getattr(STEP, n)) for n in measured)


def test_unknown_stays_unknown():
    values = metric_values(replace(STEP, mfu=None, memory_gib=None, memory_total_gib=None))
    assert values["perf/mfu"] is None
    assert values["mem/peak_reserved_gib"] is None


def test_evaluation_reports_perplexity_of_its_loss():
    record = EvaluationRecord(step=10, loss=math.log(50), bits_per_byte=None, targets=7)
    values = metric_values(record)
    assert values["validation/perplexity"] == pytest.approx(50)
    assert values["validation/bits_per_byte"] is None
    assert to_json_object(record, wall_time_s=0.0)["kind"] == "evaluation"


def test_perplexity_of_a_hopeless_loss_is_infinite():
    assert math.isinf(EvaluationRecord(step=1, loss=1e4, bits_per_byte=1.0, targets=1).perplexity)


@pytest.mark.parametrize(
    "wrong",
    [{"loss": -1.0}, {"step": 0}, {"step": 50_001}],
    ids=["loss of a rank without one", "no step", "beyond the end"],
)
def test_what_no_measurement_gives_is_refused(wrong):
    with pytest.raises(AssertionError):
        replace(STEP, **wrong)


def test_the_names_are_those_of_the_documentation():
    """Dashboards are built on names: one that changes must change here, knowingly."""
    text = (ROOT / "docs/run-folder.md").read_text()
    table = text.split("| metric | unit and meaning |")[1].split("\n\n")[0]
    first_cells = [row.split("|")[1] for row in table.splitlines() if row.count("|") >= 3]
    documented = [name for cell in first_cells for name in re.findall(r"`([^`]+)`", cell)]
    evaluation = EvaluationRecord(step=1, loss=1.0, bits_per_byte=1.0, targets=1)
    reported = {
        *metric_values(STEP),
        *metric_values(evaluation),
        *drawn_metrics({"<name>": Drawn(samples=1, tokens=8, epochs=0.5, share=1.0)}),
        *sample_host(psutil.Process()),
        *(name.replace("gpu_0", "gpu_N") for name in sample_gpus(fake_nvml(power_fails=False))),
    }
    assert sorted(documented) == sorted(reported)
