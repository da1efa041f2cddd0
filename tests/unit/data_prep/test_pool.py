# SPDX-License-Identifier: Apache-2.0
"""Worker processes: results in order, progress, and ends of every kind."""

import os
import signal

import pytest

from bt_megatron.errors import DataError
from data_prep.pool import ShardJob, write_shards
from data_prep.streams import STDIN


@pytest.fixture
def job(tokenizer_file, tmp_path):
    (tmp_path / "out").mkdir()
    return ShardJob(
        tokenizer=tokenizer_file, eos_token="<|endoftext|>", folder=tmp_path / "out", strict=False
    )


@pytest.fixture
def sources(make_input, corpus_bytes):
    return {name: make_input(f"{name}.jsonl", corpus_bytes) for name in ("a", "b", "c")}


def test_processes_give_what_one_gives_and_report_positions(job, sources):
    seen = []
    together = write_shards(job, sources, workers=2, on_positions=lambda p: seen.append(list(p)))
    alone = write_shards(job, sources, workers=1, on_positions=lambda p: None)
    assert together == alone
    assert [record.name for record in together] == ["a", "b", "c"]
    assert seen[-1] == [(path.stat().st_size, 60, 0) for path in sources.values()]


def test_killed_worker_is_an_error_with_a_remedy(job, sources, corpus_bytes):
    for path in sources.values():
        path.write_bytes(corpus_bytes * 100)

    def kill_a_worker(positions):
        children = children_of(os.getpid())
        for pid in [child for child in children if b"spawn_main" in command_of(child)]:
            os.kill(pid, signal.SIGKILL)

    with pytest.raises(DataError, match=r"worker processes was killed.*fewer --workers"):
        write_shards(job, sources, workers=2, on_positions=kill_a_worker)


def test_interruption_stops_the_workers_soon_and_leaves_no_files(job, sources, corpus_bytes):
    for path in sources.values():
        path.write_bytes(corpus_bytes * 300)

    def interrupt_once_under_way(positions):
        if any(position.documents for position in positions):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(job, sources, workers=2, on_positions=interrupt_once_under_way)
    assert list(job.folder.iterdir()) == []


def test_one_input_needs_no_process(job, monkeypatch):
    """Standard input can only be read by the process that was given it."""
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "wb") as stream:
        stream.write(b'{"text": "piped"}\n')
    with os.fdopen(read_end) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        (record,) = write_shards(job, {"stdin": STDIN}, workers=8, on_positions=lambda p: None)
    assert record.documents == 1


def children_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as stream:  # noqa: PTH123
        return [int(child) for child in stream.read().split()]


def command_of(pid):
    with open(f"/proc/{pid}/cmdline", "rb") as stream:  # noqa: PTH123
        return stream.read()
