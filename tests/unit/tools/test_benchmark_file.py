# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest

from bt_megatron.errors import DataError
from tools.benchmark_file import Row, write_benchmark

ROW = Row(case="demo/cpu", metric="tokens_per_s", value=5.5, unit="tokens/s", detail={"dp": 2})
KEYS = {"commit", "date", "machine", "versions", "command", "rows"}
ROOT = Path(__file__).resolve().parents[3]


def test_file_says_where_the_numbers_come_from(tmp_path: Path) -> None:
    write_benchmark(tmp_path / "new" / "demo.json", [ROW])
    content = json.loads((tmp_path / "new" / "demo.json").read_text())
    assert set(content) == KEYS
    assert content["rows"] == [
        {
            "case": "demo/cpu",
            "metric": "tokens_per_s",
            "value": 5.5,
            "unit": "tokens/s",
            "detail": {"dp": 2},
        }
    ]
    assert content["versions"]["torch"] == "2.11.0"
    assert content["machine"]


def test_unwritable_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_benchmark(tmp_path / "file" / "demo.json", [ROW])


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "benchmarks").glob("*.json")))
def test_committed_files_have_the_form(path: Path) -> None:
    content = json.loads(path.read_text())
    assert set(content) == KEYS
    assert len(content["commit"]) == 40
    for row in content["rows"]:
        assert set(row) == {"case", "metric", "value", "unit", "detail"}
