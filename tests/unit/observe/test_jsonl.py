# SPDX-License-Identifier: Apache-2.0
"""metrics.jsonl and events.jsonl: append, survive a kill, hold each step once."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bt_megatron.errors import DataError, TrainingError
from bt_megatron.observe.jsonl import (
    EventsLog,
    JsonLines,
    MetricsLog,
    read_lines,
    read_records,
    rewind,
)
from bt_megatron.observe.record import EvaluationRecord
from bt_megatron.observe.run_folder import RunFolder


def write_evaluations(folder: RunFolder, steps: list[int], loss: float = 2.0) -> None:
    log = MetricsLog(folder)
    for step in steps:
        log.write(EvaluationRecord(step=step, loss=loss, bits_per_byte=None, targets=1))
    log.close()


def steps_in(path: Path) -> list[int]:
    return [record["step"] for record in read_records(path)]


def test_records_are_readable_while_the_log_is_open(tmp_path):
    folder = RunFolder(tmp_path / "run")
    log = MetricsLog(folder)
    log.write(
        EvaluationRecord(step=3, loss=1.5, bits_per_byte=None, targets=2),
        extra={"system/cpu_percent": 12.5},
    )
    (record,) = read_records(folder.metrics)
    assert record["validation/loss"] == 1.5
    assert record["system/cpu_percent"] == 12.5
    assert record["validation/bits_per_byte"] is None


def test_a_loss_that_is_not_a_number_is_null(tmp_path):
    folder = RunFolder(tmp_path)
    write_evaluations(folder, [1], loss=float("nan"))
    assert read_records(folder.metrics)[0]["validation/loss"] is None


def test_events_keep_their_details(tmp_path):
    folder = RunFolder(tmp_path)
    events = EventsLog(folder)
    events.write("started", step=0, world_size=8)
    events.write("stopped", step=9, reason="signal", status="KILLED")
    events.close()
    first, last = read_records(folder.events)
    assert (first["event"], first["world_size"]) == ("started", 8)
    assert (last["event"], last["step"], last["reason"]) == ("stopped", 9, "signal")


def test_a_missing_file_has_no_records(tmp_path):
    assert read_records(tmp_path / "metrics.jsonl") == []


@given(st.lists(st.integers(0, 10**6), max_size=6), st.integers(0, 200))
def test_cut_anywhere_the_file_keeps_its_whole_lines(values, cut):
    with tempfile.TemporaryDirectory() as parent:
        path = Path(parent) / "file.jsonl"
        lines = [orjson.dumps({"value": value}) + b"\n" for value in values]
        path.write_bytes(b"".join(lines)[:cut])
        whole = [v for i, v in enumerate(values) if len(b"".join(lines[: i + 1])) <= cut]
        assert [record["value"] for record in read_records(path)] == whole
        file = JsonLines(path)
        file.write({"value": -1})
        file.close()
        assert [record["value"] for record in read_records(path)] == [*whole, -1]


def test_a_killed_writer_leaves_whole_lines(tmp_path):
    path = tmp_path / "file.jsonl"
    program = (
        "import sys; from pathlib import Path; from bt_megatron.observe.jsonl import JsonLines\n"
        "file = JsonLines(Path(sys.argv[1])); i = 0\n"
        "while True:\n"
        "    file.write({'value': i, 'text': 'x' * 5000}); i += 1\n"
        "    if i == 200: print('ready', flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        writer.send_signal(signal.SIGKILL)
    values = [record["value"] for record in read_records(path)]
    assert values == list(range(len(values)))
    assert len(values) >= 200


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\0\0\0\n{"step": 2}\n')
    with pytest.raises(DataError, match=r"metrics.jsonl line 2: not a JSON object"):
        read_records(path)


def test_reading_goes_on_from_a_byte(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n{"step": 3}\n')
    first, second = read_lines(path, limit=2)
    rest = list(read_lines(path, start=second.end))
    assert (first.value, second.value) == ({"step": 1}, {"step": 2})
    assert [line.value for line in rest] == [{"step": 3}]
    assert rest[-1].end == path.stat().st_size


def test_rewind_keeps_each_step_once(tmp_path):
    folder = RunFolder(tmp_path)
    write_evaluations(folder, [10, 20, 30, 40])
    kept = folder.metrics.read_bytes().splitlines(keepends=True)[:2]
    assert rewind(folder, step=20) == 2
    assert folder.metrics.read_bytes() == b"".join(kept)
    assert steps_in(folder.discarded_metrics) == [30, 40]
    write_evaluations(folder, [30, 40, 50])
    assert steps_in(folder.metrics) == [10, 20, 30, 40, 50]


@pytest.mark.parametrize(
    ("step", "moved"), [(40, 0), (35, 1), (0, 4)], ids=["all kept", "between", "from nothing"]
)
def test_rewind_moves_only_later_steps(tmp_path, step, moved):
    folder = RunFolder(tmp_path)
    write_evaluations(folder, [10, 20, 30, 40])
    assert rewind(folder, step=step) == moved
    assert len(steps_in(folder.metrics)) == 4 - moved


def test_rewind_of_a_new_run_does_nothing(tmp_path):
    assert rewind(RunFolder(tmp_path), step=0) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_second_rewind_adds_to_what_was_discarded(tmp_path):
    folder = RunFolder(tmp_path)
    write_evaluations(folder, [10, 20])
    rewind(folder, step=10)
    write_evaluations(folder, [20])
    rewind(folder, step=0)
    assert steps_in(folder.discarded_metrics) == [20, 10, 20]


def test_a_disk_that_is_full_is_an_error_with_a_remedy():
    full = Path("/dev/full")
    if not full.exists() or not os.access(full, os.W_OK):
        pytest.skip("this system has no /dev/full")
    log = JsonLines.__new__(JsonLines)
    log.path, log._file = full, full.open("ab", buffering=0)
    with pytest.raises(TrainingError, match="Free space"):
        log.write({"step": 1})
    log.close()


def test_a_folder_that_cannot_be_made_is_an_error_with_a_remedy(tmp_path):
    (tmp_path / "run").write_text("a file where the folder should be")
    with pytest.raises(TrainingError, match="cannot be written"):
        MetricsLog(RunFolder(tmp_path / "run"))
