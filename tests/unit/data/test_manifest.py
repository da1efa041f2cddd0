# SPDX-License-Identifier: Apache-2.0
"""The manifest: saved, loaded, and refused when it contradicts itself."""

import dataclasses
import hashlib
import json

import pytest

from bt_megatron.data.manifest import (
    Manifest,
    ProblemRecord,
    ShardRecord,
    SourceRecord,
    SubsetCounts,
    TokenizerRecord,
    load_manifest,
    save_manifest,
    sha256_of,
)
from bt_megatron.errors import DataError


def shard(name, *, documents=2, subset="Books", bin_sha256=None):
    return ShardRecord(
        name=name,
        documents=documents,
        tokens=10,
        text_bytes=40,
        bin_sha256=bin_sha256 or f"bin of {name}",
        idx_sha256="bb",
        source=SourceRecord(name=f"{name}.jsonl", size=99, sha256="cc"),
        subsets={subset: SubsetCounts(documents=documents, tokens=10, text_bytes=40)},
        problems={"invalid_json": ProblemRecord(count=3, examples=(f"{name}.jsonl:1: bad",))},
    )


@pytest.fixture
def manifest():
    return Manifest(
        tokenizer=TokenizerRecord(file="tokenizer.json", sha256="dd", vocab_size=300, eos_id=0),
        dtype="uint16",
        shards=(shard("00"), shard("01", documents=5, subset="Code"), shard("02")),
    )


def test_loads_what_was_saved(tmp_path, manifest):
    save_manifest(manifest, tmp_path)
    assert load_manifest(tmp_path) == manifest
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_file_is_the_contract(tmp_path, manifest):
    save_manifest(manifest, tmp_path)
    body = json.loads((tmp_path / "manifest.json").read_text())
    assert list(body) == ["format", "tokenizer", "dtype", "shards", "subsets", "problems"]
    assert body["format"] == 1
    assert body["subsets"]["Books"] == {"documents": 4, "tokens": 20, "text_bytes": 80}
    assert body["problems"] == {"invalid_json": 9}
    assert body["shards"][1]["problems"]["invalid_json"]["count"] == 3


def test_totals_are_sums(manifest):
    assert (manifest.documents, manifest.tokens) == (9, 30)
    assert list(manifest.subsets) == ["Books", "Code"]


def test_fingerprint_changes_with_tokens_and_order_only(manifest):
    first, *others = manifest.shards

    def fingerprint_of(*shards):
        return dataclasses.replace(manifest, shards=shards).fingerprint

    renamed = dataclasses.replace(first, name="zero")
    assert fingerprint_of(renamed, *others) == manifest.fingerprint
    assert fingerprint_of(shard("00", bin_sha256="other"), *others) != manifest.fingerprint
    assert fingerprint_of(*others, first) != manifest.fingerprint


def test_missing_manifest_says_what_to_type(tmp_path):
    with pytest.raises(DataError, match=r"not found.*python -m data_prep tokenize"):
        load_manifest(tmp_path)


def edit(folder, change):
    path = folder / "manifest.json"
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b.update(format=2), "has format 2, expected 1"),
        (lambda b: b["shards"][1].update(tokens="10"), r"shards\[1\]: tokens - is a str, expected"),
        (lambda b: b["shards"][1].update(tokens=True), r"shards\[1\]: tokens - is a bool"),
        (lambda b: b["tokenizer"].pop("eos_id"), r"tokenizer - has the keys .*expected .*eos_id"),
        (lambda b: b.update(extra=1), "has the keys .*extra"),
        (lambda b: b.update(shards={}), "shards - is a dict, expected list"),
        (lambda b: b["subsets"]["Code"].update(documents=6), "subsets - says .*add up to"),
        (lambda b: b["problems"].update(invalid_json=1), "problems - says .*add up to"),
    ],
    ids=["format", "str", "bool", "missing", "unknown", "list", "subsets", "problems"],
)
def test_wrong_manifest_is_refused(tmp_path, manifest, change, message):
    save_manifest(manifest, tmp_path)
    edit(tmp_path, change)
    with pytest.raises(DataError, match=rf"manifest\.json.*{message}"):
        load_manifest(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_broken_json_is_refused(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(DataError, match=r"manifest\.json - "):
        load_manifest(tmp_path)


def test_sha256_is_of_the_whole_file_and_reports_its_bytes(tmp_path):
    content = bytes(range(256)) * 40_000  # larger than one piece
    (tmp_path / "f").write_bytes(content)
    seen = []
    assert sha256_of(tmp_path / "f", on_bytes=seen.append) == hashlib.sha256(content).hexdigest()
    assert sum(seen) == len(content)
    assert len(seen) > 1
