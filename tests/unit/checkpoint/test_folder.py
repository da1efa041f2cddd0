# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from bt_megatron.checkpoint.folder import (
    complete_checkpoints,
    remove_checkpoint,
    step_folder,
    step_of,
    superseded,
)
from bt_megatron.checkpoint.manifest import MANIFEST


def make(checkpoints: Path, step: int, *, complete: bool = True) -> Path:
    folder = step_folder(checkpoints, step)
    folder.mkdir(parents=True)
    (folder / "a.distcp").write_bytes(b"a")
    if complete:
        (folder / MANIFEST).write_text("{}")
    return folder


def test_only_folders_with_a_manifest_count_newest_first(tmp_path: Path) -> None:
    for step in (5, 100_000_000, 10):
        make(tmp_path, step)
    make(tmp_path, 15, complete=False)
    (tmp_path / "notes").mkdir()
    (tmp_path / "step_00000020").write_text("a file")
    steps = [step_of(folder) for folder in complete_checkpoints(tmp_path)]
    assert steps == [100_000_000, 10, 5]


def test_no_folder_means_no_checkpoints(tmp_path: Path) -> None:
    assert list(complete_checkpoints(tmp_path / "absent")) == []


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "removed"),
    [
        (1, None, [5, 10, 15, 20]),
        (2, None, [5, 10, 15]),
        (5, None, []),
        (9, None, []),
        (1, 10, [5, 15]),
        (2, 15, [5, 10]),
    ],
)
def test_what_is_superseded(
    tmp_path: Path, keep_last: int, keep_every: int | None, removed: list[int]
) -> None:
    for step in (5, 10, 15, 20, 25):
        make(tmp_path, step)
    make(tmp_path, 30, complete=False)
    old = superseded(tmp_path, keep_last=keep_last, keep_every_steps=keep_every)
    assert [step_of(folder) for folder in old] == removed


def test_removed_checkpoint_is_gone(tmp_path: Path) -> None:
    folder = make(tmp_path, 5)
    remove_checkpoint(folder)
    assert not folder.exists()
