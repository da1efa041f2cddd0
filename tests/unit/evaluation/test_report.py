# SPDX-License-Identifier: Apache-2.0
"""Table and JSON of an evaluation."""

import json

import pytest

from bt_megatron.errors import DataError
from bt_megatron.evaluation.measurement import Measurement
from bt_megatron.evaluation.report import flat_metrics, markdown, table_rows, write_report
from tests.measured import EVERYTHING


def test_every_number_is_in_the_table_once():
    rows = table_rows(EVERYTHING)
    assert len(rows) == len(flat_metrics(EVERYTHING))
    assert [row.name for row in rows if row.name] == [m.name for m in EVERYTHING]
    first = rows[0]
    assert (first.metric, first.value, first.error) == ("acc", "0.2500", "0.0100")
    assert first.over == "1,000 of 2,000 documents (validation)"

    lines = markdown(rows).splitlines()
    assert len(lines) == len(rows) + 2
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.5, "0.5000"), (0.0, "0.0000"), (123456.0, "1.235e+05"), (1e-5, "1.000e-05")],
)
def test_numbers_of_any_size_can_be_read(value, shown):
    (row, *_) = table_rows(
        [
            Measurement(
                name="zero-shot/x", metrics={"perplexity": value}, detail=EVERYTHING[0].detail
            )
        ]
    )
    assert row.value == shown


def test_files(tmp_path):
    files = write_report(tmp_path / "out", EVERYTHING, identity={"fingerprint": "f"})
    assert [path.name for path in files] == ["results.json", "table.md"]
    results = json.loads(files[0].read_text())
    assert results["fingerprint"] == "f"
    assert results["metrics"]["zero-shot/piqa/acc"] == 0.25
    assert len(results["measurements"]) == len(EVERYTHING)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="Pass --out"):
        write_report(tmp_path / "file", EVERYTHING, identity={})
