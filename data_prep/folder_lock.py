# SPDX-License-Identifier: Apache-2.0
"""One run at a time in a data folder."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from bt_megatron.errors import DataError

FILE_NAME = ".lock"


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
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
        yield
    finally:
        os.close(descriptor)
