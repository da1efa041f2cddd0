# SPDX-License-Identifier: Apache-2.0
"""The command without its processes; tests/e2e/test_layout_tools.py runs it whole."""

import json

import pytest
import torch

from tools.bench_scaling import main
from tools.scaling_cases import scaling_cases


def test_dry_run_lists_every_case_with_its_plan(capsys):
    assert main(["--dry-run"]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split()[:3] == ["case", "processes", "micro-batches"]
    assert [line.split()[0] for line in lines] == [c.name for c in scaling_cases(8, is_tiny=False)]


def test_dry_run_of_fewer_gpus(capsys):
    assert main(["--dry-run", "--processes", "1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_named_cases_come_with_what_they_are_compared_with(capsys):
    assert main(["--dry-run", "--cases", "dp8/block-1.2b,pp2/block-1.2b"]) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        *("one/block-1.2b", "dp8/block-1.2b", "pp2/block-1.2b")
    ]


def test_without_time_every_case_is_named_and_none_is_run(tmp_path, capsys):
    file = tmp_path / "scaling.json"
    assert main(["--tiny", "--processes", "2", "--minutes", "0", "--benchmark", str(file)]) == 0
    *_, count, skipped = capsys.readouterr().out.splitlines()
    assert count == "0 of 8 cases were measured"
    assert skipped == "not measured, for want of time: " + ", ".join(
        case.name for case in scaling_cases(2, is_tiny=True)
    )
    assert json.loads(file.read_text())["rows"] == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--dry-run", "--cases", "dp3/block-420m"], "there is no such case. Use some of one/"),
        pytest.param(
            [],
            "there are 0 GPUs. Use --dry-run",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="is for machines without"),
        ),
    ],
    ids=["case", "no GPU"],
)
def test_wrong_arguments_are_told(arguments, text, capsys):
    assert main(arguments) == 2
    assert text in capsys.readouterr().err
