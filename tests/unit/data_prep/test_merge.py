# SPDX-License-Identifier: Apache-2.0
"""Folders side by side and joined: the bytes of a folder made at once, or a refusal."""

import dataclasses
import json

import pytest
from tokenizers import Tokenizer

from bt_megatron.data.manifest import load_manifest
from bt_megatron.errors import DataError
from data_prep.merge import bytes_to_merge, merge
from data_prep.tokenize import TokenizeOptions, tokenize
from data_prep.verify import find_faults


@pytest.fixture
def made(make_input, corpus_bytes, tokenizer_file, tmp_path):
    """Two folders of two and one shards, and what they were made from."""
    lines = corpus_bytes.split(b"\n")
    inputs = [
        make_input(f"{name}.jsonl", b"\n".join(rows))
        for name, rows in (("a", lines[:9]), ("b", [b"broken", *lines[9:30]]), ("c", lines[30:]))
    ]
    folders = [tmp_path / "one", tmp_path / "two"]
    options = TokenizeOptions(inputs=[], tokenizer=tokenizer_file, out=folders[0])
    tokenize(dataclasses.replace(options, inputs=[inputs[0], inputs[2]]))
    tokenize(dataclasses.replace(options, inputs=[inputs[1]], out=folders[1]))
    return options, inputs, folders


def merged(folders, out, join_as=None):
    seen = []
    merge(folders, out, join_as=join_as, on_bytes=seen.append)
    assert list(find_faults(out, on_bytes=lambda size: None)) == []
    return sum(seen)


def contents(folder):
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if not path.name.endswith((".shard.json", ".lock"))
    }


def test_side_by_side_is_the_folder_made_at_once(made, tmp_path):
    options, inputs, folders = made
    tokenize(dataclasses.replace(options, inputs=inputs, out=tmp_path / "at once"))
    size = merged(folders, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "at once")
    assert size == bytes_to_merge(folders)
    assert (tmp_path / "out/a.bin").samefile(folders[0] / "a.bin")


def test_joined_is_the_shard_of_all_inputs_one_after_another(made, tmp_path, make_input):
    options, inputs, folders = made
    whole = make_input("whole.jsonl", b"\n".join(path.read_bytes().strip() for path in inputs))
    tokenize(dataclasses.replace(options, inputs=[whole], out=tmp_path / "at once"))
    merged(folders, tmp_path / "out", "whole")
    for name in ("whole.bin", "whole.idx", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "at once" / name).read_bytes()
    (found,), (expected,) = (load_manifest(tmp_path / name).shards for name in ("out", "at once"))
    assert found.subsets == expected.subsets
    assert found.source.name == "a.jsonl to c.jsonl, 3 inputs"
    assert found.source.size == sum(path.stat().st_size for path in inputs)
    assert found.problems["invalid_json"].examples[0].startswith("b.jsonl:1: ")


@pytest.mark.parametrize("join_as", [None, "whole"])
def test_merged_again_it_is_the_same(made, tmp_path, join_as):
    _, _, folders = made
    merged(folders, tmp_path / "out", join_as)
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()  # as if it had been killed
    (tmp_path / "out" / "whole.bin.tmp").write_bytes(b"half")
    merged(folders, tmp_path / "out", join_as)
    (tmp_path / "out" / "whole.bin.tmp").unlink(missing_ok=True)
    assert contents(tmp_path / "out") == before


def test_damage_is_found_when_joining(made, tmp_path):
    _, _, folders = made
    path = folders[1] / "b.bin"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"b\.bin - has sha256 .*the manifest says"):
        merge(folders, tmp_path / "out", join_as="whole", on_bytes=lambda size: None)
    assert not (tmp_path / "out/manifest.json").exists()
    assert not (tmp_path / "out/whole.bin").exists()


def test_index_that_does_not_fit_its_record_is_found(made, tmp_path):
    _, _, folders = made
    body = json.loads((folders[1] / "manifest.json").read_text())
    body["shards"][0]["documents"] += 1
    (folders[1] / "manifest.json").write_text(json.dumps(body))
    with pytest.raises(DataError, match=r"b\.idx - has 21 documents .* the manifest says 22"):
        merge(folders, tmp_path / "out", join_as=None, on_bytes=lambda size: None)


def test_folders_that_do_not_go_together_are_refused(made, tmp_path):
    options, inputs, folders = made

    def refused(which, match, out=tmp_path / "out"):
        with pytest.raises(DataError, match=match):
            merge(which, out, join_as=None, on_bytes=lambda size: None)

    refused([folders[0], folders[0].parent / "absent"], "absent/manifest.json - not found")
    refused(folders, "is one of the folders to merge", out=folders[1])
    tokenize(dataclasses.replace(options, inputs=[inputs[0]], out=tmp_path / "again"))
    refused([*folders, tmp_path / "again"], "both hold a shard 'a'")
    other = Tokenizer.from_file(str(options.tokenizer))
    other.add_tokens(["another"])
    other.save(str(tmp_path / "other.json"))
    foreign = dataclasses.replace(
        options, inputs=[inputs[0]], tokenizer=tmp_path / "other.json", out=tmp_path / "foreign"
    )
    tokenize(foreign)
    refused([folders[1], tmp_path / "foreign"], "has uint16 ids of tokenizer")
    merge([folders[0]], tmp_path / "taken", join_as=None, on_bytes=lambda size: None)
    refused([folders[1]], "holds other shards: a, c - use another", out=tmp_path / "taken")
