# SPDX-License-Identifier: Apache-2.0
"""The plotting command: where the picture goes, and its errors."""

import pytest

from tools.plot_loss import main


@pytest.fixture
def runs(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2.0}\n')
    return [str(tmp_path / "a"), str(tmp_path / "b")]


def test_one_run_is_drawn_into_its_folder(tmp_path, runs, capsys):
    assert main(runs[:1]) == 0
    assert (tmp_path / "a" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == f"{tmp_path / 'a' / 'loss.png'}\n"


def test_several_runs_need_a_place(tmp_path, runs, capsys):
    assert main(runs) == 2
    assert "--out" in capsys.readouterr().err
    assert main([*runs, "--out", str(tmp_path / "both.png")]) == 0
    assert (tmp_path / "both.png").exists()


def test_errors_are_one_line(tmp_path, runs, capsys):
    assert main([str(tmp_path / "none")]) == 4
    assert main([runs[0], "--out", str(tmp_path / "no" / "folder.png")]) == 4
    errors = capsys.readouterr().err.splitlines()
    assert [error.startswith("error: ") for error in errors] == [True, True]
