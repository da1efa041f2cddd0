# SPDX-License-Identifier: Apache-2.0
"""A .bin file that is cut into pieces reads like the whole one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bt_megatron.data.corpus import TokenCorpus
from bt_megatron.data.index import TokenShard, shard_paths
from bt_megatron.data.pieces import TokenPieces, bin_files, map_tokens
from bt_megatron.errors import DataError

DOCUMENTS = [[5, 6, 7], [], [8], [9, 10, 11, 12, 13], [14]]


def cut(prefix, *, sizes):
    """Cut a .bin file into pieces of so many bytes and remove it."""
    path = shard_paths(prefix)[0]
    data, at = path.read_bytes(), 0
    for number, size in enumerate(sizes):
        piece = prefix.with_name(f"{prefix.name}-{number:05d}-of-{len(sizes) - 1:05d}.bin")
        piece.write_bytes(data[at : at + size])
        at += size
    assert at == len(data)
    path.unlink()


@given(
    lengths=st.lists(st.integers(0, 5), max_size=6),
    ends=st.tuples(st.integers(0, 30), st.integers(0, 30)),
)
def test_any_run_of_ids_is_that_of_the_whole(lengths, ends):
    whole = np.arange(sum(lengths), dtype=np.uint16)
    pieces = TokenPieces(np.split(whole, np.cumsum(lengths)[:-1]) if lengths else [])
    start, stop = sorted(min(end, len(whole)) for end in ends)

    assert len(pieces) == len(whole)
    assert pieces.read(start, stop).tolist() == whole[start:stop].tolist()
    assert pieces[start:stop].tolist() == whole[start:stop].tolist()
    assert [int(pieces[i]) for i in range(len(whole))] == whole.tolist()


def test_ids_of_one_piece_are_a_view():
    array = np.arange(8, dtype=np.uint16)
    pieces = TokenPieces([array, array])
    assert np.shares_memory(pieces.read(9, 12), array)


@pytest.mark.parametrize("sizes", [(20,), (4, 16), (2, 0, 10, 8)], ids=str)
def test_cut_shard_holds_the_same_documents(write_shard, sizes):
    prefix = write_shard(DOCUMENTS)
    whole = TokenCorpus.from_shards([prefix], eos_id=0, vocab_size=15)
    cut(prefix, sizes=sizes)
    corpus = TokenCorpus.from_shards([prefix], eos_id=0, vocab_size=15)

    assert [corpus.document(i).tolist() for i in range(corpus.num_documents)] == DOCUMENTS
    assert corpus.tokens[:].tolist() == [token for document in DOCUMENTS for token in document]
    assert corpus.fingerprint == whole.fingerprint
    assert TokenShard(prefix).num_tokens == 10


def test_missing_piece_is_named(write_shard):
    prefix = write_shard(DOCUMENTS)
    cut(prefix, sizes=(4, 10, 6))
    prefix.with_name(f"{prefix.name}-00001-of-00002.bin").unlink()
    with pytest.raises(DataError, match=r"-00001-of-00002\.bin - 1 of 3 pieces are missing, 2 are"):
        bin_files(prefix)


def test_piece_of_another_set_is_refused(write_shard):
    prefix = write_shard(DOCUMENTS)
    cut(prefix, sizes=(4, 16))
    prefix.with_name(f"{prefix.name}-00000-of-00003.bin").write_bytes(b"")
    with pytest.raises(DataError, match="pieces are missing"):
        bin_files(prefix)


def test_whole_file_beside_its_pieces_is_refused(write_shard):
    prefix = write_shard(DOCUMENTS)
    data = shard_paths(prefix)[0].read_bytes()
    cut(prefix, sizes=(4, 16))
    shard_paths(prefix)[0].write_bytes(data)
    with pytest.raises(DataError, match=r"stands beside 2 pieces such as .*-00000-of-00001\.bin"):
        bin_files(prefix)


def test_short_piece_is_refused(write_shard):
    prefix = write_shard(DOCUMENTS)
    cut(prefix, sizes=(4, 16))
    prefix.with_name(f"{prefix.name}-00001-of-00001.bin").write_bytes(b"\0" * 14)
    with pytest.raises(DataError, match=r"-\*\.bin - has 18 bytes, .* 10 tokens of uint16, 20"):
        TokenShard(prefix)


def test_half_an_id_is_refused(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(b"\0" * 5)
    with pytest.raises(DataError, match=r"x\.bin - has 5 bytes, which are no whole ids of uint16"):
        map_tokens([path], np.dtype("uint16"))
