# SPDX-License-Identifier: Apache-2.0
"""The process through which checkpoint writers report what they wrote.

Left to itself, Megatron spawns it at the first save. That imports the main module a
second time, 5 to 15 seconds in which no step is taken, and the process outlives a
trainer that is killed. Forked at the start it costs nothing, and it dies with its parent.
"""

import ctypes
import functools
import multiprocessing
import signal
from multiprocessing.managers import SyncManager

PR_SET_PDEATHSIG = 1
"""Linux: prctl option for the signal that a process gets when its parent ends (prctl(2))."""


@functools.cache
def start() -> None:
    """Start the process; call it before other threads exist. Idempotent."""
    import megatron.core.dist_checkpointing.strategies.filesystem_async as writer

    manager = SyncManager(ctx=multiprocessing.get_context("fork"))
    manager.start(initializer=_follow_parent)
    writer._results_queue = manager.Queue()


def _follow_parent() -> None:
    """Die with the parent; leave Ctrl-C to it, which needs the queue to finish saving."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
