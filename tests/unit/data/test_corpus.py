# SPDX-License-Identifier: Apache-2.0
"""Several shards are one list of documents, and a wrong folder is refused."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from bt_megatron.data.corpus import TokenCorpus
from bt_megatron.data.index import TokenShardWriter, shard_paths
from bt_megatron.data.manifest import (
    Manifest,
    ShardRecord,
    SourceRecord,
    TokenizerRecord,
    save_manifest,
    sha256_of,
)
from bt_megatron.errors import DataError

SHARDS = ([[5, 6, 7], [8]], [], [[9, 10], [], [11, 12, 13, 14]])
DOCUMENTS = [document for shard in SHARDS for document in shard]


@pytest.fixture
def folder(tmp_path):
    """Write a data folder of three shards, one of them empty."""
    records = tuple(_write(tmp_path / f"part-{i}", shard) for i, shard in enumerate(SHARDS))
    _save(tmp_path, records)
    return tmp_path


def _write(prefix: Path, documents) -> ShardRecord:
    with TokenShardWriter(prefix, "uint16") as writer:
        for document in documents:
            writer.add_document(document)
    bin_path, idx_path = shard_paths(prefix)
    return ShardRecord(
        name=prefix.name,
        documents=len(documents),
        tokens=sum(map(len, documents)),
        text_bytes=0,
        bin_sha256=sha256_of(bin_path),
        idx_sha256=sha256_of(idx_path),
        source=SourceRecord(name=prefix.name + ".jsonl", size=0, sha256=""),
        subsets={},
        problems={},
    )


def _save(folder: Path, shards) -> None:
    tokenizer = TokenizerRecord(file="tokenizer.json", sha256="ab", vocab_size=15, eos_id=2)
    save_manifest(Manifest(tokenizer=tokenizer, dtype="uint16", shards=shards), folder)


def test_folder_opens_as_one_list_of_documents(folder):
    corpus = TokenCorpus.open(folder)
    assert corpus.num_documents == len(DOCUMENTS)
    assert corpus.num_tokens == sum(map(len, DOCUMENTS))
    assert corpus.lengths.dtype == np.int32
    assert corpus.lengths.tolist() == [len(document) for document in DOCUMENTS]
    assert [corpus.document(i).tolist() for i in range(len(DOCUMENTS))] == DOCUMENTS
    assert (corpus.eos_id, corpus.vocab_size) == (2, 15)
    assert corpus.tokenizer_path == folder / "tokenizer.json"


def test_bare_shards_open_like_the_folder(folder):
    corpus = TokenCorpus.from_shards(
        [folder / f"part-{i}" for i in range(3)], eos_id=2, vocab_size=15
    )
    assert [corpus.document(i).tolist() for i in range(len(DOCUMENTS))] == DOCUMENTS
    assert corpus.tokenizer_path is None


def test_lengths_of_a_single_shard_stay_on_disk(folder):
    corpus = TokenCorpus.from_shards([folder / "part-0"], eos_id=2, vocab_size=15)
    assert np.shares_memory(corpus.lengths, corpus.shards[0].lengths)


@pytest.mark.parametrize("index", [-1, len(DOCUMENTS)])
def test_document_outside_of_the_corpus_is_an_index_error(folder, index):
    with pytest.raises(IndexError, match=f"document {index} of 5"):
        TokenCorpus.open(folder).document(index)


def test_no_shards_are_no_documents():
    corpus = TokenCorpus.from_shards([], eos_id=2, vocab_size=15)
    assert corpus.num_documents == 0
    assert corpus.lengths.tolist() == []


@pytest.mark.parametrize(
    ("documents", "eos_id"),
    [
        pytest.param([[5, 6, 7], [9]], 2, id="token"),
        pytest.param([[5, 6], [7, 8]], 2, id="boundary"),
        pytest.param([[5, 6, 7], [8]], 3, id="eos"),
        pytest.param([[5, 6, 7], [8], []], 2, id="empty-document"),
    ],
)
def test_fingerprint_of_bare_shards_depends_on(write_shard, documents, eos_id):
    corpora = [
        TokenCorpus.from_shards([write_shard(docs)], eos_id=eos, vocab_size=15)
        for docs, eos in (([[5, 6, 7], [8]], 2), ([[5, 6, 7], [8]], 2), (documents, eos_id))
    ]
    assert corpora[0].fingerprint == corpora[1].fingerprint
    assert corpora[0].fingerprint != corpora[2].fingerprint


def test_fingerprint_of_a_folder_does_not_depend_on_where_it_is(folder, tmp_path_factory):
    copy = tmp_path_factory.mktemp("copy")
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    before = TokenCorpus.open(folder).fingerprint
    assert TokenCorpus.open(copy).fingerprint == before
    _save(copy, (_write(copy / "part-0", [[5, 6, 7], [9]]),))
    assert TokenCorpus.open(copy).fingerprint != before


def test_folder_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"manifest\.json"):
        TokenCorpus.open(tmp_path)


def test_missing_shard_is_named(folder):
    (folder / "part-2.bin").unlink()
    with pytest.raises(DataError, match=r"part-2\.bin"):
        TokenCorpus.open(folder)


def test_shard_of_another_run_is_refused_with_both_numbers(folder):
    _write(folder / "part-2", [[9, 10], [11]])
    with pytest.raises(DataError, match="part-2 - holds 2 documents and 3 tokens.*says 3.* and 6"):
        TokenCorpus.open(folder)


def test_manifest_of_another_type_is_refused(folder):
    shards = tuple(
        dataclasses.replace(_write(folder / f"part-{i}", shard), name=f"part-{i}")
        for i, shard in enumerate(SHARDS)
    )
    tokenizer = TokenizerRecord(file="tokenizer.json", sha256="ab", vocab_size=15, eos_id=2)
    save_manifest(Manifest(tokenizer=tokenizer, dtype="int32", shards=shards), folder)
    with pytest.raises(DataError, match=r"uint16, but manifest\.json says .* of int32"):
        TokenCorpus.open(folder)
