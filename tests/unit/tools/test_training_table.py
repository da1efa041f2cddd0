# SPDX-License-Identifier: Apache-2.0
import pytest

import tests.ranks  # noqa: F401  imports Megatron for machines without CUDA
from tools.training_cases import read_case
from tools.training_table import Measured, comparison, line_of, official_tokens_per_s, rows_of


def measured(model: str, *, step_s: list[float], parts: dict[str, float] | None = None) -> Measured:
    case = read_case(f"{model}:batch.micro_batch_size=4", world_size=1)
    return Measured(case, step_s, None, 10.5, parts or {})


def test_tokens_per_second_are_by_the_median_step() -> None:
    one = measured("block-33m", step_s=[1.0, 2.0, 100.0])
    assert one.tokens_per_s == 4 * 2048 / 2.0
    (row,) = rows_of(one)
    assert (row.case, row.metric) == (
        "train/block-33m/bf16/batch.micro_batch_size=4",
        "tokens_per_s",
    )
    assert row.detail["step_ms"] == [1000.0, 2000.0, 100000.0]
    assert "n/a" in line_of(one.case.name, [row])


def test_parts_are_rows_with_their_share() -> None:
    rows = rows_of(measured("block-33m", step_s=[1.0], parts={"head forward": 1.0, "update": 3.0}))
    parts = {row.detail["part"]: row.value / row.detail["of_ms"] for row in rows[1:]}
    assert parts == {"head forward": 0.25, "update": 0.75}
    assert "75.0%" in line_of("name", rows)


def test_a_model_stands_beside_its_twin_and_the_official_code() -> None:
    found = {
        "block-170m": measured("block-170m", step_s=[1.0]),
        "vanilla-160m": measured("vanilla-160m", step_s=[4.0]),
    }
    _, block, vanilla = comparison(found, official=True).splitlines()
    assert block.split()[-2:] == ["4.00x", f"{4 * 2048 / 304431:.2f}x"]
    assert vanilla.split()[-1] == f"{2048 / 67413:.2f}x"
    assert comparison(found, official=False).splitlines()[2].split() == [
        "vanilla-160m",
        "4",
        "2,048",
    ]


@pytest.mark.parametrize("model", ["block-170m", "block-420m", "block-1.2b"])
def test_the_official_numbers_are_there(model: str) -> None:
    assert official_tokens_per_s()[model] > 50_000
