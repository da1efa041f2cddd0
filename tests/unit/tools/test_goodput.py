# SPDX-License-Identifier: Apache-2.0
"""The goodput command: a table, JSON, a picture. What it counts: tests/unit/observe."""

import json
import re

import orjson
import pytest

from tools.goodput import duration, main


@pytest.fixture
def run_dir(tmp_path):
    """A run of two steps in one attempt."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    events = [
        {"event": "started", "time": 10.0, "step": 0, "process_start": 5.0},
        {"event": "first_step", "time": 12.0, "step": 1},
        {"event": "saved", "time": 22.0, "step": 2, "begun": 20.0, "stall_s": 0.5},
        {"event": "stopped", "time": 25.0, "step": 2, "reason": "complete"},
    ]
    steps = [
        {"kind": "step", "time": time, "step": step}
        | {"perf/step_s": 1.0, "perf/data_wait_fraction": 0.0}
        for step, time in ((1, 12.0), (2, 20.0))
    ]
    for name, lines in (("events", events), ("metrics", steps)):
        content = b"".join(orjson.dumps(line) + b"\n" for line in lines)
        (folder / f"{name}.jsonl").write_bytes(content)
    return folder


def test_the_figures_are_printed_and_drawn(run_dir, capsys):
    assert main([str(run_dir)]) == 0
    printed = capsys.readouterr().out
    assert "goodput 62.5% of 20.0 s, 0 restarts" in printed
    assert re.search(r"starting, up to the first step +7\.0 s +35\.0%", printed)
    assert (run_dir / "timeline.png").read_bytes().startswith(b"\x89PNG")


def test_they_are_printed_as_json(run_dir, tmp_path, capsys):
    picture = tmp_path / "other.png"
    assert main([str(run_dir), "--json", "--out", str(picture)]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["goodput"] == pytest.approx(12.5 / 20)
    assert figures["seconds"]["checkpoint"] == 0.5
    assert figures["longest_checkpoint_stall_s"] == 0.5
    assert picture.exists()
    assert not (run_dir / "timeline.png").exists()


def test_a_folder_that_is_no_run_is_told(tmp_path, capsys):
    assert main([str(tmp_path)]) == 4
    assert "not the folder of a run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(12.34, "12.3 s"), (245, "4m05s"), (11_520, "3h12m"), (360_000, "100h00m")],
)
def test_times_are_written_for_people(seconds, text):
    assert duration(seconds) == text
