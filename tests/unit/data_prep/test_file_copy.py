# SPDX-License-Identifier: Apache-2.0
"""The same bytes, whichever call of the kernel moves them."""

import errno
import os
from pathlib import Path

import pytest

from data_prep import file_copy
from data_prep.file_copy import append_file, link_or_copy


def refuse(*_, **__):
    raise OSError(errno.EXDEV, "Invalid cross-device link")


@pytest.fixture(params=["copy_file_range", "sendfile"])
def call(request, monkeypatch):
    if request.param == "sendfile":
        monkeypatch.setattr(os, "copy_file_range", refuse)
    monkeypatch.setattr(file_copy, "_AT_ONCE", 70_000)


def test_files_are_appended_in_order(call, tmp_path):
    contents = [os.urandom(size) for size in (200_001, 0, 5)]
    seen = []
    with (tmp_path / "out").open("wb", buffering=0) as target:
        for i, content in enumerate(contents):
            (tmp_path / str(i)).write_bytes(content)
            assert append_file(tmp_path / str(i), target, on_bytes=seen.append) == len(content)
    assert (tmp_path / "out").read_bytes() == b"".join(contents)
    assert sum(seen) == 200_006


def test_errors_have_the_names_of_both_files(call, tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    with (
        Path("/dev/full").open("wb", buffering=0) as target,
        pytest.raises(OSError, match=r"a to /dev/full"),
    ):
        append_file(tmp_path / "a", target, on_bytes=lambda size: None)


def test_link_has_the_same_file_and_copy_another(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"abc")
    for name in ("b", "c"):
        link_or_copy(tmp_path / "a", tmp_path / name, on_bytes=lambda size: None)
        monkeypatch.setattr(os, "link", refuse)
    assert (tmp_path / "b").samefile(tmp_path / "a")
    assert not (tmp_path / "c").samefile(tmp_path / "a")
    assert (tmp_path / "c").read_bytes() == b"abc"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]
