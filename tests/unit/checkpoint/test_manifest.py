# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace
from pathlib import Path

import pytest

from bt_megatron.checkpoint.manifest import (
    MANIFEST,
    Manifest,
    data_files,
    file_entry,
    find_damage,
    read_manifest,
    write_manifest,
)
from bt_megatron.errors import CheckpointError

EMPTY = Manifest(
    step=7,
    tokens=700,
    config={"name": "x"},
    world_size=2,
    data_fingerprint="abc",
    versions={"torch": "1"},
    files={},
)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    for name, content in (("a.distcp", b"a" * 1000), ("b.distcp", b"b" * 10)):
        (tmp_path / name).write_bytes(content)
    files = {path.name: file_entry(path) for path in data_files(tmp_path)}
    write_manifest(tmp_path, replace(EMPTY, files=files))
    return tmp_path


def test_manifest_round_trip(checkpoint: Path) -> None:
    manifest = read_manifest(checkpoint)
    assert manifest == replace(EMPTY, files=manifest.files)
    assert sorted(manifest.files) == ["a.distcp", "b.distcp"]
    assert manifest.size_bytes == 1010


def test_whole_files_are_not_damaged(checkpoint: Path) -> None:
    manifest = read_manifest(checkpoint)
    assert find_damage(checkpoint, manifest, manifest.files) == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a" * 999, "999 bytes, the manifest says 1000"),
        (b"a" * 999 + b"x", "SHA-256 is not the manifest's"),
        (None, "No such file"),
    ],
    ids=["truncated", "altered", "missing"],
)
def test_damage_is_named(checkpoint: Path, content: bytes | None, reason: str) -> None:
    victim = checkpoint / "a.distcp"
    victim.unlink()
    if content is not None:
        victim.write_bytes(content)
    manifest = read_manifest(checkpoint)
    (line,) = find_damage(checkpoint, manifest, manifest.files)
    assert line.startswith(str(victim))
    assert reason in line


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[1]", b'{"format": 1}', b'{"format": 99}', b"\xff\xfe"],
    ids=["empty", "no-format", "list", "no-keys", "newer-format", "no-text"],
)
def test_damaged_manifest_is_an_error(checkpoint: Path, content: bytes) -> None:
    (checkpoint / MANIFEST).write_bytes(content)
    with pytest.raises(CheckpointError, match=MANIFEST):
        read_manifest(checkpoint)


def test_checkpoint_without_manifest_was_never_finished(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="never finished"):
        read_manifest(tmp_path)
