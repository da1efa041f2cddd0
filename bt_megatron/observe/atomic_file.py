# SPDX-License-Identifier: Apache-2.0
"""Replace a small file so that a reader or a crash sees the old or the new one, whole."""

import os
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path` by way of a file next to it and a rename.

    Raises:
        OSError: the folder cannot be written; `path` is as it was.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
