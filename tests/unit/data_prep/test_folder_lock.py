# SPDX-License-Identifier: Apache-2.0
"""One holder at a time, also after a holder was killed."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from bt_megatron.errors import DataError
from data_prep.folder_lock import lock_folder

HOLD = (
    "import sys, time, pathlib; from data_prep.folder_lock import lock_folder\n"
    "with lock_folder(pathlib.Path(sys.argv[1])):\n"
    "    print('held', flush=True); time.sleep(60)"
)


def test_second_holder_is_refused_with_the_name_of_the_first(tmp_path):
    with (
        lock_folder(tmp_path),
        pytest.raises(DataError, match=rf"another run \(.*, process {os.getpid()}\)"),
        lock_folder(tmp_path),
    ):
        pass
    with lock_folder(tmp_path):
        pass


def wait(lock, started):
    started.set()
    time.sleep(60)


def test_worker_holds_the_lock_of_a_parent_that_is_gone(tmp_path):
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    with lock_folder(tmp_path) as lock:
        worker = context.Process(target=wait, args=(lock, started))
        worker.start()
        assert started.wait(60)
    with pytest.raises(DataError, match="another run"), lock_folder(tmp_path):
        pass
    worker.kill()
    worker.join()
    with lock_folder(tmp_path):
        pass


def test_killed_holder_holds_nothing(tmp_path, repository):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=repository)
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(DataError, match=f"process {process.pid}"), lock_folder(tmp_path):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    with lock_folder(tmp_path):
        pass
