# SPDX-License-Identifier: Apache-2.0
"""Token shards: written, read back, read by Megatron-Core, and refused when damaged."""

import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bt_megatron.data.index import TokenShard, TokenShardWriter, shard_paths, token_dtype
from bt_megatron.errors import DataError

FIXTURES = Path(__file__).parents[2] / "fixtures" / "data_pipeline"
REFERENCE_SHARD = FIXTURES / "pile_0.87_deduped_text_document"
DOCUMENTS = [[1, 2, 3], [65_499], [7] * 50, [0, 0]]


def write(prefix, documents, dtype="uint16"):
    with TokenShardWriter(prefix, dtype) as writer:
        for ids in documents:
            writer.add_document(ids)
    return prefix


def documents_of(shard):
    return [shard.document(i).tolist() for i in range(shard.num_documents)]


@pytest.fixture
def shard_prefix(tmp_path):
    return write(tmp_path / "part.00", DOCUMENTS)


@pytest.mark.parametrize(
    ("vocab_size", "dtype"),
    [(258, "uint16"), (50_277, "uint16"), (65_499, "uint16"), (65_500, "int32"), (2**20, "int32")],
)
def test_dtype_follows_megatron(vocab_size, dtype):
    assert token_dtype(vocab_size) == dtype


@settings(max_examples=50, deadline=None)
@given(
    documents=st.lists(st.lists(st.integers(0, 2**16 - 1), max_size=30), max_size=20),
    dtype=st.sampled_from(["uint16", "int32"]),
)
def test_what_is_written_is_read(tmp_path_factory, documents, dtype):
    shard = TokenShard(write(tmp_path_factory.mktemp("shard") / "s", documents, dtype))
    assert documents_of(shard) == documents
    assert shard.dtype == np.dtype(dtype)
    assert shard.lengths.dtype == np.int32
    assert shard.lengths.tolist() == [len(ids) for ids in documents]
    assert shard.tokens.tolist() == [token for ids in documents for token in ids]


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
def test_megatron_core_reads_the_same(tmp_path, dtype):
    from megatron.core.datasets import indexed_dataset  # seconds to import: where it is needed

    prefix = write(tmp_path / "part.00", DOCUMENTS, dtype)
    dataset = indexed_dataset.IndexedDataset(str(prefix), mmap=True)
    assert [dataset[i].tolist() for i in range(len(dataset))] == DOCUMENTS
    assert dataset.document_indices.tolist() == [0, 1, 2, 3, 4]
    assert dataset[0].dtype == np.dtype(dtype)


def test_megatron_core_writes_the_same_bytes(tmp_path):
    import torch
    from megatron.core.datasets import indexed_dataset

    builder = indexed_dataset.IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.uint16)
    for ids in DOCUMENTS:
        builder.add_document(torch.tensor(ids), [len(ids)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    ours = write(tmp_path / "ours", DOCUMENTS)
    for mine, theirs in zip(shard_paths(ours), shard_paths(tmp_path / "theirs"), strict=True):
        assert mine.read_bytes() == theirs.read_bytes()


def test_reads_the_shard_of_the_reference():
    facts = json.loads((FIXTURES / "config.json").read_text())
    shard = TokenShard(REFERENCE_SHARD)
    assert shard.num_documents == facts["n_documents"]
    assert shard.lengths.tolist() == facts["document_lengths"]
    raw = np.fromfile(shard_paths(REFERENCE_SHARD)[0], dtype=np.uint16)
    assert np.array_equal(np.concatenate([shard.document(i) for i in range(60)]), raw)


def test_document_of_several_sequences_is_one_document(tmp_path):
    prefix = write(tmp_path / "s", [[1, 2], [3], [4, 5, 6], []])
    idx = shard_paths(prefix)[1]
    content = idx.read_bytes()
    head = content[:18] + struct.pack("<QQ", 4, 4) + content[34 : 34 + 48]
    idx.write_bytes(head + struct.pack("<4q", 0, 2, 2, 4))
    shard = TokenShard(prefix)
    assert documents_of(shard) == [[1, 2, 3], [], [4, 5, 6]]
    assert shard.lengths.tolist() == [3, 0, 3]


def test_shard_cannot_be_written_to(shard_prefix):
    shard = TokenShard(shard_prefix)
    for values in (shard.document(0), shard.lengths, shard.tokens):
        with pytest.raises(ValueError, match="read-only"):
            values[0] = 1


def test_pickles_as_its_path(shard_prefix):
    shard = TokenShard(shard_prefix)
    pickled = pickle.dumps(shard)
    assert len(pickled) < 500
    assert documents_of(pickle.loads(pickled)) == documents_of(shard)


@pytest.mark.parametrize(
    ("ids", "dtype"), [([65_536], "uint16"), ([-1], "uint16"), ([2**31], "int32")]
)
def test_id_that_does_not_fit_is_refused(tmp_path, ids, dtype):
    writer = TokenShardWriter(tmp_path / "s", dtype)
    with pytest.raises(DataError, match=f"ids {ids[0]} to {ids[0]} do not fit {dtype}"):
        writer.add_document(np.array(ids))
    writer.discard()


def test_float_tokens_are_refused(tmp_path):
    with pytest.raises(DataError, match="float32 is no type of token ids"):
        TokenShardWriter(tmp_path / "s", "float32")


def test_nothing_has_its_name_before_close(tmp_path):
    writer = TokenShardWriter(tmp_path / "s", "uint16")
    writer.add_document([1])
    assert not any(path.exists() for path in shard_paths(tmp_path / "s"))
    writer.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.bin", "s.idx"]


def test_exception_leaves_nothing_behind(tmp_path):
    def interrupted_ids():
        yield [1]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "s", interrupted_ids())
    assert list(tmp_path.iterdir()) == []


def patch(path, offset, data):
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("offset", "data", "message"),
    [
        (0, b"X", "is no index"),
        (9, struct.pack("<Q", 2), "has version 2, expected 1"),
        (
            17,
            b"\x07",
            r"has dtype code 7 \(floats: float64 and float32 in Megatron-Core, .*\), expected",
        ),
        (18, struct.pack("<Q", 5), "has 122 bytes, but 5 sequences and 5 document boundaries"),
        (34, struct.pack("<i", -3), "sequence 0 has the length -3"),
        (34, struct.pack("<i", 4), "sequence 1 starts at byte 6, but .* end at byte 8"),
        (34 + 16, struct.pack("<q", 2), "sequence 0 starts at byte 2, but .* end at byte 0"),
        (34 + 48, struct.pack("<q", 1), "boundaries are 1 to 4 instead of 0 to 4"),
        (34 + 48 + 8, struct.pack("<q", 3), "document 1 ends before it starts"),
    ],
    ids=["magic", "version", "dtype", "count", "negative", "length", "offset", "first", "order"],
)
def test_damaged_index_is_named(shard_prefix, offset, data, message):
    patch(shard_paths(shard_prefix)[1], offset, data)
    with pytest.raises(DataError, match=rf"part\.00\.idx - .*{message}"):
        TokenShard(shard_prefix)


@pytest.mark.parametrize("size", [0, 33, 34, 121])
def test_cut_index_is_named(shard_prefix, size):
    idx = shard_paths(shard_prefix)[1]
    idx.write_bytes(idx.read_bytes()[:size])
    with pytest.raises(DataError, match=r"part\.00\.idx"):
        TokenShard(shard_prefix)


@pytest.mark.parametrize("change", [-1, 1], ids=["cut", "longer"])
def test_data_of_another_size_is_named_with_both_numbers(shard_prefix, change):
    data = shard_paths(shard_prefix)[0]
    size = data.stat().st_size
    content = data.read_bytes() + b"\x00"
    data.write_bytes(content[: size + change])
    message = rf"part\.00\.bin - has {size + change} bytes, .* 56 tokens of uint16, {size} bytes"
    with pytest.raises(DataError, match=message):
        TokenShard(shard_prefix)


@pytest.mark.parametrize("which", [0, 1], ids=["bin", "idx"])
def test_missing_file_is_named(shard_prefix, which):
    path = shard_paths(shard_prefix)[which]
    path.unlink()
    with pytest.raises(DataError, match=rf"{path.name} - cannot be read: No such file"):
        TokenShard(shard_prefix)
