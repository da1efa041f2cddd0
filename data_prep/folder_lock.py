# SPDX-License-Identifier: Apache-2.0
"""One run at a time in a data folder."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from multiprocessing import reduction
from pathlib import Path
from typing import Any

from bt_megatron.errors import DataError

FILE_NAME = ".lock"


class HeldLock:
    """A lock that is held; given to a process as it is spawned, that process holds it, too.

    So the lock of a parent that was killed stays until its last worker has ended: a new run
    cannot meet one that still writes.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __reduce__(self) -> tuple[Callable[[Any], "HeldLock"], tuple[Any]]:
        return _inherited, (reduction.DupFd(self._descriptor),)


def _inherited(duplicate: Any) -> HeldLock:
    return HeldLock(duplicate.detach())


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[HeldLock]:
    """Hold a folder's lock; the kernel gives it back however the process ends.

    The file stays, with the last holder's host and process: a file that is removed
    could be locked by two at once. On NFS the lock holds between hosts too, from Linux
    2.6.12 on.

    Raises:
        DataError: another run holds the lock.
    """
    path = folder / FILE_NAME
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 1024, 0).decode(errors="replace").strip()
            raise DataError(
                f"{folder} - is being written by another run ({holder or 'unknown process'}) - "
                "wait for it to end, or use another --out"
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{socket.gethostname()}, process {os.getpid()}\n".encode(), 0)
        yield HeldLock(descriptor)
    finally:
        os.close(descriptor)
