# SPDX-License-Identifier: Apache-2.0
"""Processes that end with the process that started them, however that ends.

A checkpoint writer that outlived its trainer would hold memory and write into a
checkpoint that nobody will ever complete.
"""

import ctypes
import functools
import os
import signal
from collections.abc import Callable

PR_SET_PDEATHSIG = 1
"""Linux: prctl option for the signal that a process gets when its parent ends (prctl(2))."""


@functools.cache
def _prctl() -> Callable[[int, int], int]:
    return ctypes.CDLL(None).prctl


def end_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """Let this process get a signal when its parent ends.

    Args:
        parent: process id of the parent.
        number: the signal.
    """
    _prctl()(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it ended before
        os._exit(1)


@functools.cache
def install() -> None:
    """Make every process that this one forks from now on end with it. Idempotent."""
    parent = 0
    _prctl()  # looked up before the fork: another thread may hold the linker's lock during it

    def remember_parent() -> None:
        nonlocal parent
        parent = os.getpid()

    os.register_at_fork(
        before=remember_parent, after_in_child=lambda: end_with_parent(parent, signal.SIGKILL)
    )
