# SPDX-License-Identifier: Apache-2.0
"""Every kind of damage is named; a sound folder has none."""

import json

import numpy as np
import pytest

from bt_megatron.data.manifest import sha256_of
from bt_megatron.errors import DataError
from data_prep.tokenize import TokenizeOptions, tokenize
from data_prep.verify import bytes_to_check, find_faults


@pytest.fixture
def folder(make_input, corpus_bytes, tokenizer_file, tmp_path):
    inputs = [make_input(f"{name}.jsonl", corpus_bytes) for name in ("a", "b")]
    tokenize(TokenizeOptions(inputs=inputs, tokenizer=tokenizer_file, out=tmp_path / "out"))
    return tmp_path / "out"


def faults_in(folder):
    return list(find_faults(folder, on_bytes=lambda size: None))


def edit_shard(folder, **changes):
    """Change what the manifest says of the first shard."""
    body = json.loads((folder / "manifest.json").read_text())
    body["shards"][0].update(changes)
    (folder / "manifest.json").write_text(json.dumps(body))


def change_token(folder, at, value):
    tokens = np.fromfile(folder / "a.bin", dtype=np.uint16)
    tokens[at] = value
    tokens.tofile(folder / "a.bin")


def test_sound_folder_has_no_faults_and_all_bytes_are_read(folder):
    seen = []
    assert list(find_faults(folder, on_bytes=seen.append)) == []
    assert sum(seen) == bytes_to_check(folder) > 0


def test_one_changed_token_is_found(folder):
    change_token(folder, 5, 7)
    (fault,) = faults_in(folder)
    assert fault.startswith(f"{folder}/a.bin - has sha256 ")


def test_tokens_outside_of_the_vocabulary_are_found_with_their_document(folder):
    first = int(np.fromfile(folder / "a.idx", dtype="<i4", count=1, offset=34)[0])
    change_token(folder, first, 600)
    change_token(folder, first + 3, 65_535)
    edit_shard(folder, bin_sha256=sha256_of(folder / "a.bin"))
    assert faults_in(folder) == [
        f"{folder}/a.bin - 2 ids are outside of the vocabulary of 600; the first is 600, at token "
        f"{first} in document 1"
    ]


def test_changed_index_is_found(folder):
    content = bytearray((folder / "a.idx").read_bytes())
    content[34] ^= 1
    (folder / "a.idx").write_bytes(content)
    faults = faults_in(folder)
    assert len(faults) == 2
    assert "a.idx - has sha256" in faults[0]
    assert "a.idx - sequence 1 starts at byte" in faults[1]


@pytest.mark.parametrize("name", ["a.bin", "a.idx"])
def test_missing_file_is_found_and_the_other_shard_is_still_checked(folder, name):
    (folder / name).unlink()
    (folder / "b.bin").write_bytes(b"")
    faults = faults_in(folder)
    assert any(f"{name} - cannot be read: No such file" in fault for fault in faults)
    assert any("b.bin - has 0 bytes" in fault for fault in faults)


def test_wrong_counts_are_found(folder):
    edit_shard(folder, documents=61, tokens=1, text_bytes=2)
    faults = "\n".join(faults_in(folder))
    assert "has 60 documents, the manifest says 61" in faults
    assert "tokens, the manifest says 1" in faults
    assert "bytes, the shard has 2" in faults


def test_other_tokenizer_is_found(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"][1]["content"] = "<|other|>"
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (first, *_) = faults_in(folder)
    assert "tokenizer.json - has sha256" in first


def test_broken_tokenizer_is_found(folder):
    (folder / "tokenizer.json").write_text("{")
    (fault,) = faults_in(folder)
    assert "tokenizer.json - is no tokenizer" in fault


def test_dtype_that_differs_is_found(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"dtype": "uint16"', '"dtype": "int32"'))
    faults = faults_in(folder)
    assert len(faults) == 2
    assert all("has uint16 tokens, the manifest says int32" in fault for fault in faults)


def test_file_that_the_manifest_does_not_know_is_found(folder):
    (folder / "stray.bin").write_bytes(b"")
    assert faults_in(folder) == [f"{folder}/stray.bin - is not in the manifest"]


def test_folder_without_manifest_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"manifest\.json - not found"):
        faults_in(tmp_path)
