# SPDX-License-Identifier: Apache-2.0
"""A dataset is one side of the split; its fingerprint says what can be seen of it."""

import dataclasses

import numpy as np
import pytest

from bt_megatron.config.schema import DataConfig
from bt_megatron.data.dataset import PackedDataset
from bt_megatron.errors import DataError

CONFIG = DataConfig(path="data/books", seq_length=64, validation_fraction=0.2)
PLAIN = dataclasses.replace(CONFIG, random_left_padding=False, pad_to_block_boundary=False)


def _real_tokens(dataset):
    samples = [dataset[i] for i in range(len(dataset))]
    return {int(t) for sample in samples for t in sample.tokens[sample.mask] if t}


def test_no_token_is_on_both_sides(numbered_corpus):
    train, validation = (
        PackedDataset(numbered_corpus, config=CONFIG, block_length=4, split=side)
        for side in ("train", "validation")
    )
    assert train.num_documents + validation.num_documents == numbered_corpus.num_documents
    seen = _real_tokens(train), _real_tokens(validation)
    assert not seen[0] & seen[1]
    dropped = train.num_tokens % 64 + validation.num_tokens % 64
    assert len(seen[0]) + len(seen[1]) >= numbered_corpus.num_tokens - dropped


def test_sample_has_the_promised_types(numbered_corpus):
    sample = PackedDataset(numbered_corpus, config=CONFIG, block_length=4)[0]
    assert (sample.tokens.dtype, sample.tokens.shape) == (np.int64, (64,))
    assert (sample.mask.dtype, sample.mask.shape) == (np.bool_, (64,))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"seq_length": 128}, id="seq_length"),
        pytest.param({"random_left_padding": False}, id="random_left_padding"),
        pytest.param({"pad_to_block_boundary": False}, id="pad_to_block_boundary"),
        pytest.param({"padding_seed": 1}, id="padding_seed"),
        pytest.param({"validation_fraction": 0.1}, id="validation_fraction"),
        pytest.param({"seed": 1}, id="seed"),
    ],
)
def test_fingerprint_depends_on(numbered_corpus, change):
    changed = dataclasses.replace(CONFIG, **change)
    one, other = (
        PackedDataset(numbered_corpus, config=config, block_length=4)
        for config in (CONFIG, changed)
    )
    assert one.fingerprint != other.fingerprint


def test_fingerprint_depends_on_side_corpus_and_block_length(numbered_corpus, make_corpus):
    other = make_corpus([numbered_corpus.document(i) for i in range(299)])
    fingerprints = {
        PackedDataset(corpus, config=CONFIG, block_length=k, split=side).fingerprint
        for corpus, k, side in (
            (numbered_corpus, 4, "train"),
            (numbered_corpus, 4, "validation"),
            (numbered_corpus, 8, "train"),
            (other, 4, "train"),
        )
    }
    assert len(fingerprints) == 4


def test_fingerprint_ignores_what_changes_no_sample(numbered_corpus):
    """A block model without padding and a vanilla model read the same samples in the same order."""
    moved = dataclasses.replace(PLAIN, path="elsewhere", padding_seed=9)
    block, vanilla, padded_vanilla = (
        PackedDataset(numbered_corpus, config=PLAIN, block_length=4),
        PackedDataset(numbered_corpus, config=moved, block_length=1),
        PackedDataset(numbered_corpus, config=CONFIG, block_length=1),
    )
    assert block.fingerprint == vanilla.fingerprint == padded_vanilla.fingerprint
    for i in range(len(block)):
        assert np.array_equal(block[i].tokens, vanilla[i].tokens)
        assert np.array_equal(block[i].tokens, padded_vanilla[i].tokens)


def test_too_few_tokens_are_refused_with_both_numbers(make_corpus):
    config = dataclasses.replace(PLAIN, seq_length=2048, validation_fraction=0.0)
    with pytest.raises(DataError) as error:
        PackedDataset(make_corpus([[1, 2, 3]] * 10), config=config, block_length=4)
    assert str(error.value) == (
        "data/books - 0 whole samples of 2048 tokens in 40 tokens (10 train documents) - "
        "lower data.seq_length or add text"
    )


def test_too_small_a_validation_split_names_its_own_remedy(numbered_corpus):
    config = dataclasses.replace(CONFIG, seq_length=2048, validation_fraction=1e-9)
    with pytest.raises(DataError, match=r"1 validation documents.*raise data\.validation_fraction"):
        PackedDataset(numbered_corpus, config=config, block_length=4, split="validation")


def test_validation_without_held_out_documents_is_refused(numbered_corpus):
    config = dataclasses.replace(CONFIG, validation_fraction=0.0)
    with pytest.raises(DataError, match=r"set data\.validation_fraction above 0"):
        PackedDataset(numbered_corpus, config=config, block_length=4, split="validation")
