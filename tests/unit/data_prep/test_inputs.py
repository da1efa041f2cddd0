# SPDX-License-Identifier: Apache-2.0
"""Names of shards, and inputs that cannot be meant."""

from pathlib import Path

import pytest

from bt_megatron.errors import DataError
from data_prep.inputs import name_shards, shard_name, total_size
from data_prep.streams import STDIN


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("train/00.jsonl.zst", "00"),
        ("a.jsonl", "a"),
        ("a.json.gz", "a"),
        ("a.zst", "a"),
        ("pile_0.87_deduped.jsonl.zst", "pile_0.87_deduped"),
        ("a.txt", "a.txt"),
        ("noextension", "noextension"),
        (".jsonl.zst", ".jsonl"),
        ("-", "stdin"),
    ],
)
def test_shard_is_named_after_its_input(path, name):
    assert shard_name(Path(path)) == name


def test_order_of_arguments_does_not_matter(make_input):
    paths = [make_input(name, b"") for name in ("b.jsonl", "a.jsonl.zst", "c.jsonl")]
    assert list(name_shards(paths)) == ["a", "b", "c"]


def test_two_inputs_of_one_name_are_refused(make_input):
    paths = [make_input("one/a.jsonl", b""), make_input("two/a.jsonl.zst", b"")]
    with pytest.raises(DataError, match="both would make the shard 'a'"):
        name_shards(paths)


def test_same_input_twice_is_refused(make_input):
    with pytest.raises(DataError, match="both would make the shard 'a'"):
        name_shards([make_input("a.jsonl", b"")] * 2)


def test_folder_missing_file_and_mixed_stdin_are_refused(tmp_path, make_input):
    with pytest.raises(DataError, match=r"is a folder, expected files - give .*/\*\.jsonl\.zst"):
        name_shards([tmp_path])
    with pytest.raises(DataError, match=r"absent\.jsonl - not found"):
        name_shards([tmp_path / "absent.jsonl"])
    with pytest.raises(DataError, match="standard input stands among 2 inputs"):
        name_shards([STDIN, make_input("a.jsonl", b"")])


def test_total_size_is_unknown_for_a_pipe(make_input):
    assert total_size([make_input("a.jsonl", b"123"), make_input("b.jsonl", b"4")]) == 4
    assert total_size([STDIN]) is None
