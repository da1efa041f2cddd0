# SPDX-License-Identifier: Apache-2.0
"""The line that stands for the progress bar in a log file."""

from data_prep import progress
from data_prep.progress import ByteProgress, progress_line


def test_line_has_part_rate_and_time_left():
    line = progress_line(25_000_000, 100_000_000, seconds=50)
    assert line == "25.0%  25.0 MB done, 0.5 MB/s, 0h02m30s left"


def test_line_without_total_says_that_the_end_is_unknown():
    assert progress_line(25_000_000, None, seconds=50).endswith("0.5 MB/s, time left unknown")
    assert progress_line(0, 100, seconds=0.0).endswith("time left unknown")


def test_log_file_gets_a_line_now_and_then(monkeypatch, capsys):
    clock = iter([0.0, 10.0, 40.0, 50.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with ByteProgress("tokenize", total_bytes=100) as bar:
        for done in (10, 50, 60):
            bar.advance_to(done, f"{done} documents")
    lines = capsys.readouterr().err.split("\n")
    assert [line for line in lines if line] == [
        "tokenize: 50.0%  0.0 MB done, 0.0 MB/s, 0h00m40s left  50 documents"
    ]
