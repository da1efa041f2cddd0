# SPDX-License-Identifier: Apache-2.0
"""Forked processes end with the process that forked them, however that ends.

A checkpoint writer that outlived its trainer would hold memory and write into a
checkpoint that nobody will ever complete.
"""

import ctypes
import functools
import os
import signal

PR_SET_PDEATHSIG = 1
"""Linux: prctl option for the signal that a process gets when its parent ends (prctl(2))."""


@functools.cache
def install() -> None:
    """Make every process that this one forks from now on end with it. Idempotent."""
    prctl = ctypes.CDLL(None).prctl
    parent = 0

    def remember_parent() -> None:
        nonlocal parent
        parent = os.getpid()

    def follow_parent() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended between the fork and here
            os._exit(1)

    os.register_at_fork(before=remember_parent, after_in_child=follow_parent)
