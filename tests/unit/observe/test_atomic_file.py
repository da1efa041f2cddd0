# SPDX-License-Identifier: Apache-2.0
"""Replacing a file: whole, or as it was."""

from pathlib import Path

import pytest

from bt_megatron.observe.atomic_file import write_atomically


def test_the_content_is_replaced(tmp_path):
    path = tmp_path / "state.json"
    write_atomically(path, b"old and longer")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_old_content_alone(tmp_path, monkeypatch):
    path = tmp_path / "state.json"
    write_atomically(path, b"old")

    def fail(self: Path, target: Path) -> None:
        raise OSError("no rename today")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no rename today"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
