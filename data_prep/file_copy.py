# SPDX-License-Identifier: Apache-2.0
"""Files copied and joined by the kernel: their bytes do not pass through this process."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

_AT_ONCE = 1 << 28
# Another file system, one that cannot do it, a kernel that does not know it.
_CANNOT = (errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EPERM)


def append_file(source: Path, target: BinaryIO, *, on_bytes: Callable[[int], None]) -> int:
    """Append a file to an open one; file systems with shared extents only note that it is there.

    `copy_file_range` where both are of one file system, else `sendfile`.

    Args:
        source: the file.
        target: open for writing, unbuffered or flushed, at its end.
        on_bytes: called with the bytes copied since the last call.

    Returns:
        The bytes appended.

    Raises:
        OSError: reading or writing failed; it has the name of the file.
    """
    copied = 0
    descriptor = target.fileno()
    try:
        with source.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            while copied < size:
                done = _copy_some(stream.fileno(), descriptor, copied, min(_AT_ONCE, size - copied))
                if not done:
                    raise OSError(errno.EIO, f"ends after {copied} of {size} bytes")
                copied += done
                on_bytes(done)
    except OSError as error:
        name = error.filename or f"{source} to {getattr(target, 'name', 'a file')}"
        raise OSError(error.errno, error.strerror, name) from error
    return copied


def _copy_some(source: int, target: int, offset: int, size: int) -> int:
    try:
        return os.copy_file_range(source, target, size, offset_src=offset)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
    return os.sendfile(target, source, offset, size)


def link_or_copy(source: Path, target: Path, *, on_bytes: Callable[[int], None]) -> None:
    """Give a file a second name, or copy it where that cannot be done; whole or not at all."""
    temporary = target.with_name(target.name + ".tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        with temporary.open("wb", buffering=0) as stream:
            append_file(source, stream, on_bytes=on_bytes)
            os.fsync(stream.fileno())
    else:
        on_bytes(source.stat().st_size)
    temporary.replace(target)
    temporary.unlink(missing_ok=True)  # where both are the same file, rename does nothing
