# SPDX-License-Identifier: Apache-2.0
"""A folder that appears whole or not at all. No torch."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bt_megatron.errors import CheckpointError


@contextmanager
def whole_folder(
    target: Path, *, may_replace: Callable[[Path], bool] = lambda folder: False
) -> Iterator[Path]:
    """Give a folder next to `target` to write into; rename it when the body is done.

    If the body fails or is interrupted, nothing is left behind and `target` is as it was.

    Args:
        target: the folder that is to appear.
        may_replace: asked whether a folder that exists may make way.

    Raises:
        CheckpointError: `target` exists and stays, or its parent cannot be written.
    """
    if target.exists() and not may_replace(target):
        raise CheckpointError(
            f"{target}: it exists already and is not overwritten. Name another folder or remove it."
        )
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        _put_in_place(partial, target)
    except OSError as error:
        raise CheckpointError(
            f"{target}: cannot be written ({error}). Check the path and the free space."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _put_in_place(partial: Path, target: Path) -> None:
    if not target.exists():
        partial.rename(target)
        return
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    target.rename(old)
    partial.rename(target)
    shutil.rmtree(old)
