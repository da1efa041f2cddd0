# SPDX-License-Identifier: Apache-2.0
"""Worker processes: results in order, progress, and ends of every kind."""

import os
import signal

import pytest

from bt_megatron.errors import DataError
from data_prep.engines import REFERENCE
from data_prep.pool import ShardJob, share_cores, write_shards
from data_prep.streams import STDIN


@pytest.fixture
def job(tokenizer_file, tmp_path):
    (tmp_path / "out").mkdir()
    return ShardJob(
        tokenizer=tokenizer_file,
        eos_token="<|endoftext|>",
        folder=tmp_path / "out",
        strict=False,
        engine=REFERENCE,
    )


@pytest.fixture
def sources(make_input, corpus_bytes):
    return {name: make_input(f"{name}.jsonl", corpus_bytes) for name in ("a", "b", "c")}


def write(job, sources, processes, on_positions=lambda positions: None):
    return write_shards(
        job,
        sources,
        tokenizer=job.load_tokenizer(),
        processes=processes,
        on_positions=on_positions,
    )


@pytest.mark.parametrize(
    ("workers", "inputs", "processes", "threads"),
    [(8, 3, 3, "2"), (2, 30, 2, "1"), (8, 1, 1, "8"), (4, 0, 1, "4")],
)
def test_cores_are_shared_by_inputs_and_threads(monkeypatch, workers, inputs, processes, threads):
    monkeypatch.delenv("RAYON_NUM_THREADS", raising=False)
    assert share_cores(workers, inputs=inputs) == processes
    assert os.environ["RAYON_NUM_THREADS"] == threads
    share_cores(1, inputs=1)
    assert os.environ["RAYON_NUM_THREADS"] == threads  # what is set, by the user too, stays


def test_processes_give_what_one_gives_and_report_positions(job, sources):
    seen = []
    together = write(job, sources, 2, lambda positions: seen.append(list(positions)))
    alone = write(job, sources, 1)
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
        write(job, sources, 2, kill_a_worker)


def test_interruption_stops_the_workers_soon_and_leaves_no_files(job, sources, corpus_bytes):
    for path in sources.values():
        path.write_bytes(corpus_bytes * 300)

    def interrupt_once_under_way(positions):
        if any(position.documents for position in positions):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(job, sources, 2, interrupt_once_under_way)
    assert list(job.folder.iterdir()) == []


def test_one_input_needs_no_process(job, monkeypatch):
    """Standard input can only be read by the process that was given it."""
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "wb") as stream:
        stream.write(b'{"text": "piped"}\n')
    with os.fdopen(read_end) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        (record,) = write(job, {"stdin": STDIN}, 8)
    assert record.documents == 1


def children_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as stream:  # noqa: PTH123
        return [int(child) for child in stream.read().split()]


def command_of(pid):
    with open(f"/proc/{pid}/cmdline", "rb") as stream:  # noqa: PTH123
        return stream.read()
