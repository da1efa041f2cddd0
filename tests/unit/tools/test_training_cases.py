# SPDX-License-Identifier: Apache-2.0
"""Cases of the training benchmark, and the memory estimate against what was measured."""

import json
from pathlib import Path

import pytest

import tests.ranks  # noqa: F401  imports Megatron for machines without CUDA
from bt_megatron.config.devices import OUTSIDE_GIB, needed_gib
from bt_megatron.errors import ConfigError
from tools.training_cases import Case, read_case, tuned_cases
from tools.training_table import GIB

ROOT = Path(__file__).resolve().parents[3]
MEASURED = {
    row["case"]: row["value"]
    for file in ("memory.json", "fp8.json")
    for row in json.loads((ROOT / "docs/benchmarks" / file).read_text())["rows"]
    if row["metric"] == "peak_memory_gib"
    and "of_which_left_by_cases_before_gib" not in row["detail"]  # of other models too
}
by_case = pytest.mark.parametrize("name", MEASURED)
BAND = 0.10
"""Largest error of the estimate, of what was measured."""


def test_a_case_is_a_model_and_settings() -> None:
    case = read_case("block-420m:batch.micro_batch_size=4,layout.tp=2", world_size=8)

    assert case.name == "train/block-420m/bf16/batch.micro_batch_size=4,layout.tp=2"
    assert case.config.batch.global_batch_size == 16, "one micro-batch for each of four replicas"
    assert case.config.model.block_decoder.hidden_size == 1024


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("block-421m", "block-421m: not a model of configs/model. Use one of .*block-420m"),
        ("block-420m:batch.micro=4", "batch.micro: unknown key"),
        ("block-420m:layout.tp=3", "layout.tp .3. does not divide"),
        ("block-420m:batch", "expected key=value"),
    ],
)
def test_a_wrong_case_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_case(text, world_size=3)


def measured_case(name: str) -> Case:
    _, model, _, *settings = name.split("/", 3)
    return read_case(":".join((model, *settings)), world_size=1)


@by_case
def test_the_estimate_of_memory_is_near_what_was_measured(name: str) -> None:
    (process,) = measured_case(name).plan.processes

    assert process.memory.total / GIB == pytest.approx(MEASURED[name], rel=BAND)


@by_case
def test_what_a_device_is_asked_for_covers_what_was_measured(name: str) -> None:
    assert needed_gib(measured_case(name).config, dp=1) - OUTSIDE_GIB >= MEASURED[name]


@pytest.mark.parametrize(
    ("model", "sizes"),
    [("block-420m", [32, 16]), ("block-1.2b", [16, 8]), ("vanilla-410m", [32, 16])],
)
def test_tuned_cases_are_the_largest_micro_batch_and_half_of_it(
    model: str, sizes: list[int]
) -> None:
    cases = tuned_cases(model, "", device="h100-80gb")
    assert [case.config.batch.micro_batch_size for case in cases] == sizes
    assert all(case.config.kernels.cuda_graphs and case.plan.micro_batches == 1 for case in cases)


def test_a_model_that_fits_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="no micro-batch fits a100-40gb"):
        tuned_cases("block-1.2b", "data.seq_length=262144", device="a100-40gb")
