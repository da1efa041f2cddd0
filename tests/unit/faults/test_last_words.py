# SPDX-License-Identifier: Apache-2.0
"""What a rank leaves behind, and whom it takes along."""

import signal
import socket
import subprocess
import threading

import psutil
import pytest

from bt_megatron.faults import last_words
from bt_megatron.faults.verdict import Place, RankState, Verdict


def verdict(**changes):
    values = {
        "kind": "silent",
        "ranks": [2],
        "exit_code": 8,
        "headline": "rank 2 does not answer",
        "details": ["rank 0: in step 3", "rank 2: in step 3"],
        "speaker": 0,
    }
    return Verdict(**{**values, **changes})


def test_the_file_holds_the_verdict_and_all_stacks(tmp_path, capsys):
    last_words.report(verdict(), 3, tmp_path / "faults", own_error="RuntimeError: lost")
    text = (tmp_path / "faults" / "rank_0003.txt").read_text()

    assert "rank 2 does not answer" in text
    assert "rank 0: in step 3" in text
    assert "RuntimeError: lost" in text
    assert "test_the_file_holds_the_verdict_and_all_stacks" in text
    assert capsys.readouterr().err == "rank 3 stops: rank 2 does not answer\n"


def test_one_rank_tells_the_details(tmp_path, capsys):
    last_words.report(verdict(), 0, tmp_path)

    first, *others = capsys.readouterr().err.splitlines()
    assert first == "error: rank 2 does not answer"
    assert "  rank 0: in step 3" in others


def test_a_second_fault_is_added(tmp_path):
    for headline in ("the first", "the second"):
        last_words.report(verdict(headline=headline), 1, tmp_path)
    text = (tmp_path / "rank_0001.txt").read_text()

    assert text.index("the first") < text.index("the second")


def test_a_folder_that_cannot_be_written_loses_the_file_only(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    last_words.report(verdict(), 1, tmp_path / "file" / "faults")

    assert "rank 1 stops" in capsys.readouterr().err


def test_storage_that_hangs_does_not_keep_the_rank(tmp_path, monkeypatch):
    monkeypatch.setattr(last_words, "REPORT_S", 0.05)
    released = threading.Event()
    monkeypatch.setattr(last_words, "_write", lambda *_: released.wait(10))
    last_words.report(verdict(), 1, tmp_path)

    (writer,) = [thread for thread in threading.enumerate() if thread.name == "last-words"]
    released.set()
    writer.join(5)


@pytest.fixture
def neighbour():
    process = subprocess.Popen(["sleep", "60"])
    process.send_signal(signal.SIGSTOP)
    yield process
    process.kill()
    process.wait()


def state_of(process, **changes):
    values = {
        "rank": 2,
        "place": Place(),
        "host": socket.gethostname(),
        "pid": process.pid,
        "started": psutil.Process(process.pid).create_time(),
    }
    return RankState(**{**values, **changes})


def test_a_stopped_neighbour_is_killed(neighbour):
    last_words.end_stopped_neighbours(verdict(), [state_of(neighbour)])

    assert neighbour.wait(5) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("of_verdict", "of_state"),
    [
        ({"kind": "hung"}, {}),
        ({"ranks": [1]}, {}),
        ({}, {"host": "another"}),
        ({}, {"started": 1.0}),
    ],
    ids=["hung", "another rank", "another machine", "another process with its number"],
)
def test_nobody_else_is_killed(of_verdict, of_state, neighbour):
    last_words.end_stopped_neighbours(verdict(**of_verdict), [state_of(neighbour, **of_state)])

    with pytest.raises(subprocess.TimeoutExpired):
        neighbour.wait(0.2)
