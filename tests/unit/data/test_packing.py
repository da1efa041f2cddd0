# SPDX-License-Identifier: Apache-2.0
"""Packing: equal to the reference where it is right, and right where it is not."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from bt_megatron.data.corpus import TokenCorpus
from bt_megatron.data.packing import PackedDocuments, PackingOptions, left_pad_lengths
from bt_megatron.errors import DataError

FIXTURE = Path(__file__).parents[2] / "fixtures" / "data_pipeline"
CASES = ("vanilla", "block4_pad", "block8_pad", "block4_nopad", "block4_leftonly")
PREFIX = FIXTURE / "pile_0.87_deduped_text_document"


def _reference(case):
    config = json.loads((FIXTURE / "config.json").read_text())["cases"][case]
    options = PackingOptions(
        sample_length=config["length"],
        block_length=config["block_length"] or 1,
        random_left_padding=config["random_pad_first_block"],
        pad_to_block_boundary=config["pad_to_block_boundary"],
        padding_seed=config["seed"],
    )
    corpus = TokenCorpus.from_shards([PREFIX], eos_id=0, vocab_size=512)
    tensors = load_file(FIXTURE / "tensors.safetensors")
    expected = {key.split(".")[1]: value for key, value in tensors.items() if key.startswith(case)}
    packed = PackedDocuments.build(
        corpus, documents=np.arange(corpus.num_documents), options=options
    )
    return config, packed, expected


@pytest.mark.parametrize("case", CASES)
def test_samples_equal_the_reference(case):
    config, packed, expected = _reference(case)
    assert packed.num_tokens == config["padded_total_length"]
    assert len(packed) == config["n_samples"]
    samples = [packed[i] for i in range(len(packed))]
    assert np.array_equal([sample.tokens for sample in samples], expected["input_ids"])
    assert np.array_equal([sample.mask for sample in samples], expected["attention_mask_corrected"])


@pytest.mark.parametrize("case", CASES)
def test_left_pads_equal_the_reference(case):
    _, packed, expected = _reference(case)
    drawn = left_pad_lengths(packed.num_documents, packed.options)
    assert np.array_equal(drawn, expected["left_pad_lengths"])


@pytest.mark.parametrize("case", ["block4_pad", "block8_pad"])
def test_mask_differs_from_the_reference_on_lost_eos_alone(case):
    """The reference drops the EOS of documents that end on a block boundary inside a sample."""
    config, packed, expected = _reference(case)
    mask = np.stack([packed[i].mask for i in range(len(packed))])
    ends = np.append(expected["padded_document_indices"][1:], config["padded_total_length"]) - 1
    lost = ends[expected["right_pad_lengths"] == 0]
    lost = lost[(lost < mask.size) & ((lost + 1) % config["length"] != 0)]
    assert len(lost) > 5
    assert np.flatnonzero(mask.ravel() != expected["attention_mask"].ravel()).tolist() == [*lost]


def _stream(documents, eos, options, left_pads):
    """Lay the documents out one token at a time."""
    tokens, mask = [], []
    for document, left in zip(documents, left_pads, strict=True):
        tokens += [eos] * left + document + [eos]
        mask += [False] * left + [True] * (len(document) + 1)
        while options.pad_to_block_boundary and len(tokens) % options.block_length:
            tokens.append(eos)
            mask.append(False)
    return tokens, mask


@st.composite
def _packings(draw):
    block_length = draw(st.sampled_from([1, 2, 3, 4, 8]))
    options = PackingOptions(
        sample_length=block_length * draw(st.integers(1, 9)),
        block_length=block_length,
        random_left_padding=draw(st.booleans()),
        pad_to_block_boundary=draw(st.booleans()),
        padding_seed=draw(st.integers(0, 99)),
    )
    lengths = draw(st.lists(st.integers(0, 40), min_size=1, max_size=25))
    chosen = draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)))
    return options, lengths, np.flatnonzero(chosen)


@given(packing=_packings())
def test_samples_are_the_stream_cut_into_pieces(make_corpus, packing):
    options, lengths, chosen = packing
    numbers = np.split(np.arange(1, sum(lengths) + 1), np.cumsum(lengths)[:-1])
    documents = [part.tolist() for part in numbers]
    corpus = make_corpus(documents)
    packed = PackedDocuments.build(corpus, documents=chosen, options=options)

    left_pads = left_pad_lengths(len(documents), options)[chosen].tolist()
    tokens, mask = _stream([documents[i] for i in chosen], corpus.eos_id, options, left_pads)
    samples = [packed[i] for i in range(len(packed))]
    used = len(tokens) // options.sample_length * options.sample_length
    assert packed.num_tokens == len(tokens)
    assert [token for sample in samples for token in sample.tokens.tolist()] == tokens[:used]
    assert [flag for sample in samples for flag in sample.mask.tolist()] == mask[:used]


@given(packing=_packings())
def test_every_token_and_one_eos_per_document_are_real(make_corpus, packing):
    """Held against the lengths alone, not against another way to pack."""
    options, lengths, chosen = packing
    corpus = make_corpus(np.split(np.arange(1, sum(lengths) + 1), np.cumsum(lengths)[:-1]))
    options = PackingOptions(
        sample_length=options.block_length,  # nothing is left over at the end but part of a block
        block_length=options.block_length,
        random_left_padding=options.random_left_padding,
        pad_to_block_boundary=True,
        padding_seed=options.padding_seed,
    )
    packed = PackedDocuments.build(corpus, documents=chosen, options=options)
    blocks = [packed[i] for i in range(len(packed))]
    real = [int(t) for block in blocks for t in block.tokens[block.mask]]
    assert real == [int(t) for i in chosen for t in [*corpus.document(int(i)), corpus.eos_id]]
    assert all(block.mask.any() for block in blocks)
    assert all(len({*_owners(block, lengths)}) <= 1 for block in blocks)


def _owners(block, lengths):
    """Name the document of each token of a block; tokens are numbered from 1."""
    ends = np.cumsum(lengths)
    return [int(np.searchsorted(ends, token)) for token in block.tokens if token]


def test_left_pads_are_drawn_for_the_corpus_not_for_the_selection(make_corpus):
    corpus = make_corpus([[1], [2], [3], [4]])
    options = PackingOptions(sample_length=4, block_length=4, random_left_padding=True)
    pads = left_pad_lengths(4, options)
    packed = PackedDocuments.build(corpus, documents=np.array([1, 3]), options=options)
    assert packed.num_tokens == 4 + pads[1] + pads[3]


def test_block_length_one_never_pads(make_corpus):
    options = PackingOptions(
        sample_length=2, block_length=1, random_left_padding=True, pad_to_block_boundary=True
    )
    packed = PackedDocuments.build(
        make_corpus([[1, 2, 3], [4]]), documents=np.arange(2), options=options
    )
    assert [packed[i].tokens.tolist() for i in range(3)] == [[1, 2], [3, 0], [4, 0]]
    assert all(packed[i].mask.all() for i in range(3))


def test_starts_beyond_32_bits_are_counted(make_corpus):
    """One real document, repeated until the stream is longer than 2**32 tokens."""
    corpus = make_corpus([np.arange(1, 60_000)])
    documents = np.zeros(80_000, dtype=np.int64)
    options = PackingOptions(sample_length=60_000)
    packed = PackedDocuments.build(corpus, documents=documents, options=options)
    assert packed.num_tokens == 80_000 * 60_000
    assert packed[79_999].tokens.tolist() == [*range(1, 60_000), 0]


def test_samples_are_whole_blocks_or_refused():
    with pytest.raises(DataError, match="2050 tokens are not whole blocks of 4 .* 2052"):
        PackingOptions(sample_length=2050, block_length=4)


@pytest.mark.parametrize("index", [-1, 2])
def test_sample_that_is_not_there_is_an_index_error(make_corpus, index):
    options = PackingOptions(sample_length=2)
    packed = PackedDocuments.build(
        make_corpus([[1, 2, 3, 4]]), documents=np.arange(1), options=options
    )
    with pytest.raises(IndexError, match=f"sample {index} of 2"):
        packed[index]


ROWS = [[7, 0, 8, 9, 10], [0, 11, 12, 13, 14], [15, 16, 17, 18, 0]]


def test_rows_are_samples_as_they_are(make_corpus):
    options = PackingOptions(sample_length=4, block_length=2, rows=True)
    packed = PackedDocuments.build(make_corpus(ROWS), documents=np.array([0, 2]), options=options)
    assert len(packed) == 2
    assert [packed[i].tokens.tolist() for i in range(2)] == [ROWS[0][:4], ROWS[2][:4]]
    assert all(packed[i].mask.all() for i in range(2))


@pytest.mark.parametrize("boundaries", [[0, 3], [0], [0, 1, 1, 3]], ids=str)
def test_rows_do_not_depend_on_the_documents_of_the_index(write_shard, boundaries):
    prefix = write_shard(ROWS)
    path = prefix.with_name(prefix.name + ".idx")
    head, arrays = path.read_bytes()[:26], path.read_bytes()[34 : 34 + 12 * 3]
    d = np.array([len(boundaries)], "<u8").tobytes()
    path.write_bytes(head + d + arrays + np.array(boundaries, "<i8").tobytes())
    corpus = TokenCorpus.from_shards([prefix], eos_id=0, vocab_size=32, by_sequence=True)
    options = PackingOptions(sample_length=5, rows=True)
    packed = PackedDocuments.build(corpus, documents=np.arange(3), options=options)
    assert [packed[i].tokens.tolist() for i in range(3)] == ROWS


def test_row_shorter_than_a_sample_is_named(make_corpus):
    options = PackingOptions(sample_length=5, rows=True)
    corpus = make_corpus([*ROWS, [1, 2]])
    with pytest.raises(DataError, match=r"row 3 has 2 tokens, data.seq_length is 5"):
        PackedDocuments.build(corpus, documents=np.arange(4), options=options)
