# SPDX-License-Identifier: Apache-2.0
"""A folder appears whole or not at all."""

import pytest

from bt_megatron.checkpoint.whole_folder import whole_folder
from bt_megatron.errors import CheckpointError


def test_appears_at_the_end(tmp_path):
    target = tmp_path / "new" / "out"
    with whole_folder(target) as folder:
        (folder / "file").write_text("content")
        assert not target.exists()
    assert (target / "file").read_text() == "content"
    assert [path.name for path in target.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_after_a_failure(tmp_path, failure):
    def write_and_fail():
        with whole_folder(tmp_path / "out") as folder:
            (folder / "file").write_text("content")
            raise failure

    with pytest.raises(failure):
        write_and_fail()
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_not_touched(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="exists already"), whole_folder(tmp_path):
        pytest.fail("the body must not run")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("fails", [False, True], ids=["done", "failed"])
def test_replacing_keeps_the_old_folder_until_the_new_one_is_done(tmp_path, fails):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").touch()

    def write():
        with whole_folder(target, may_replace=lambda folder: (folder / "old").exists()) as folder:
            (folder / "new").touch()
            assert (target / "old").exists()
            if fails:
                raise ValueError("on purpose")

    if fails:
        with pytest.raises(ValueError, match="on purpose"):
            write()
    else:
        write()
    assert [path.name for path in target.iterdir()] == ["old" if fails else "new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(CheckpointError, match="cannot be written"),
        whole_folder(tmp_path / "file" / "out"),
    ):
        pytest.fail("the body must not run")
