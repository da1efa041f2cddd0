# SPDX-License-Identifier: Apache-2.0
"""Forked processes end with their parent."""

import os
import signal
import time
from pathlib import Path

from bt_megatron.parallel import children


def _fork_and_die(pipe):
    children.install()
    child = os.fork()
    if child == 0:
        grandchild = os.fork()  # it follows as well
        if grandchild:
            os.write(pipe, f"{os.getpid()} {grandchild}".encode())
        time.sleep(60)
        os._exit(0)
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)


def _is_running(pid):
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_children_of_a_killed_process_end():
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        _fork_and_die(write)
    os.waitpid(process, 0)
    pids = [int(pid) for pid in os.read(read, 100).split()]
    deadline = time.monotonic() + 5
    while any(map(_is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)

    assert len(pids) == 2
    assert not any(map(_is_running, pids))
