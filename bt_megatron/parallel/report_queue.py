# SPDX-License-Identifier: Apache-2.0
"""The process through which checkpoint writers report what they wrote.

Left to itself, Megatron spawns it at the first save. That imports the main module a
second time, 5 to 15 seconds in which no step is taken, and the process outlives a
trainer that is killed. Forked at the start it costs nothing, and it dies with its parent.
"""

import functools
import multiprocessing
import signal
from multiprocessing.managers import SyncManager

from bt_megatron.parallel import children


@functools.cache
def start() -> None:
    """Start the process; call it before other threads exist. Idempotent."""
    import megatron.core.dist_checkpointing.strategies.filesystem_async as writer

    children.install()
    manager = SyncManager(ctx=multiprocessing.get_context("fork"))
    manager.start(initializer=_leave_signals_to_parent)
    writer._results_queue = manager.Queue()


def _leave_signals_to_parent() -> None:
    """Leave Ctrl-C to the parent, which needs the queue to finish saving."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
