# SPDX-License-Identifier: Apache-2.0
import json
import math
from dataclasses import asdict

import pytest

from tools.layout_cases import layout_cases, small_model, small_run
from tools.layout_table import (
    FP32_ON_CPU,
    FP32_ON_GPU,
    Result,
    heading,
    limits_of,
    line,
    rows_of,
    summary,
)

CASES = {
    case.name: case
    for case in layout_cases(small_run(small_model("block", processes=2), [2], steps=1), 2)
}
OWN = {"loss_nats": 0.003, "gradient": 0.02, "gradient_name": "block_decoder.final_norm.weight"}


def result(name="tp2-sp", precision="fp32", limits=FP32_ON_CPU, error=None, **changes):
    difference = {
        "loss_nats": 7e-7,
        "loss_relative": 1e-7,
        "gradient": 2e-6,
        "gradient_name": "head.weight",
        "grad_norm_relative": 3e-7,
        **changes,
    }
    return Result(
        case=CASES[name],
        precision=precision,
        limits=limits,
        layers="torch",
        difference=None if error else difference,
        error=error,
    )


@pytest.mark.parametrize(
    ("changes", "is_good"),
    [
        ({}, True),
        ({"loss_relative": FP32_ON_CPU.loss, "gradient": FP32_ON_CPU.gradient}, True),
        ({"loss_relative": 1.01 * FP32_ON_CPU.loss}, False),
        ({"gradient": 1.01 * FP32_ON_CPU.gradient}, False),
        ({"loss_relative": math.inf}, False),
        ({"error": "rank 1: ValueError"}, False),
    ],
    ids=["good", "at the limits", "loss", "gradient", "nan", "failed"],
)
def test_limits_judge(changes, is_good):
    assert result(**changes).is_good is is_good


def test_float32_is_judged_relative_to_the_loss_and_bf16_in_nats():
    assert result(loss_nats=0.5, loss_relative=1e-7).loss == 1e-7
    assert result(precision="bf16", loss_nats=0.5, loss_relative=1e-7).loss == 0.5


def test_limits_of_float32_depend_on_the_machine():
    assert limits_of("fp32", on_cpu=True, own=None) is FP32_ON_CPU
    assert limits_of("fp32", on_cpu=False, own=None) is FP32_ON_GPU
    assert "cuBLAS" in FP32_ON_GPU.text


def test_the_band_of_bf16_is_stated_beside_what_bf16_itself_differs():
    band = limits_of("bf16", on_cpu=False, own=OWN)
    assert band.loss == 0.002
    assert band.gradient == 0.04
    assert "loss 0.002 nats, each gradient 4.0e-02 of its norm, 2 times what bf16" in band.text
    assert "first line; its limits: loss 0.01 nats" in band.text


def test_lines_are_a_table():
    width = max(map(len, CASES))
    lines = heading("fp32", FP32_ON_CPU, layers="torch", width=width)
    lines += [line(result(name), width=width) for name in ("dp2", "pp2")]
    assert lines[-3:] == [
        "layout                        loss  gradient",
        "dp2                        1.0e-07   2.0e-06",
        "pp2                        1.0e-07   2.0e-06  Ebbbt|ttL",
    ]
    assert "loss 1e-6 of it" in lines[1]


def test_what_is_wrong_is_in_its_line_and_in_the_last_one():
    results = [result(), result("dp2", gradient=0.5), result("cp2", error="rank 1: OSError: no")]
    assert line(results[1], width=5).endswith("OVER THE LIMIT, gradient of head.weight")
    assert line(results[2], width=5) == "cp2    FAILED: rank 1: OSError: no"
    assert summary(results) == "2 of 3 comparisons failed: dp2 (fp32), cp2 (fp32)"
    assert summary(results[:1]) == "all 1 comparisons are within the limits"


def test_rows_have_both_differences_with_their_limits():
    loss, gradient = rows_of([result("pp2")], model="block", detail={"steps": 3})
    assert (loss.case, loss.metric) == ("layout/pp2/fp32", "loss_difference")
    assert (loss.value, loss.unit, loss.detail["limit"]) == (1e-7, "relative", 1e-6)
    assert gradient.metric == "gradient_difference"
    assert gradient.detail == {
        "steps": 3,
        "processes": 2,
        "cut": "Ebbbt|ttL",
        "layers": "torch",
        "gradient": "head.weight",
        "limit": 1e-5,
    }


def test_rows_of_another_model_say_so():
    loss, _ = rows_of([result(precision="bf16")], model="vanilla", detail={})
    assert (loss.case, loss.unit) == ("layout/vanilla/tp2-sp/bf16", "nats")


def test_failed_layouts_have_their_error_and_json_holds_all():
    rows = rows_of(
        [result(error="rank 1: OSError"), result(gradient=math.inf)], model="block", detail={}
    )
    assert (rows[0].metric, rows[0].detail) == ("failed", {"error": "rank 1: OSError"})
    assert json.loads(json.dumps([asdict(row) for row in rows], allow_nan=False))
